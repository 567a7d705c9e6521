# SPDX-License-Identifier: Apache-2.0
"""The compiled CUDA kernels from cuobjdump: resources, and the instructions of their loops."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import microspec_kernels

LIBRARY = Path(microspec_kernels.__file__).with_name("libmicrospec.so")
# "        /*0a30*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;"
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S+)(.*?);", re.MULTILINE)
# Beginnings of the opcodes that access memory; LDC and LDCU read the kernel's arguments.
MEMORY = ("LD", "ST", "ATOM", "RED", "UBLK", "SYNCS", "CCTL", "MEMBAR", "SUATOM", "SULD")
RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@cache
def cuobjdump() -> Path | None:
    """Return the path of NVIDIA's cuobjdump, or of the one in Triton's package."""
    found = shutil.which("cuobjdump")
    if found:
        return Path(found)
    try:
        import triton
    except ImportError:
        return None
    inside = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return inside if inside.exists() else None


def dump(*options: str) -> str:
    command = [str(cuobjdump()), *options, str(LIBRARY)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def architectures() -> set[str]:
    """Return the architectures with machine code in the library: {"sm_80", ...}."""
    return set(re.findall(r"\.(sm_\w+)\.cubin", dump("--list-elf")))


def ptx_architectures() -> set[str]:
    """Return the architectures with PTX, from which a driver compiles for later GPUs."""
    return set(re.findall(r"\.(sm_\w+)\.ptx", dump("--list-ptx")))


def readable(mangled: Iterable[str]) -> list[str]:
    """Return kernels' demangled names, as in project_mma_kernel<bf16_t, bf16_t, 2>."""
    done = subprocess.run(
        ["c++filt"], input="\n".join(mangled), check=True, capture_output=True, text=True
    )
    names = done.stdout.splitlines()
    return [
        re.sub(r"\(anonymous namespace\)::|\w+::|^void ", "", name).split("(")[0] for name in names
    ]


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int
    shared: int
    local: int


def resources(arch: str) -> dict[str, Resources]:
    """Return the resources of each kernel."""
    text = dump("--dump-resource-usage", "-arch", arch).replace(":\n", ": ")
    found = RESOURCES.findall(text)
    names = readable(name for name, *_ in found)
    return {
        name: Resources(*map(int, numbers))
        for name, (_, *numbers) in zip(names, found, strict=True)
    }


@dataclass
class Kernel:
    """The instructions of a kernel by address, in order."""

    name: str
    addresses: list[int] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)

    def loops(self) -> Iterator[list[str]]:
        """Return the instructions of each loop: from a backward branch's target to the branch."""
        for end, instruction in enumerate(self.instructions):
            if not instruction.startswith("BRA"):
                continue
            target = re.match(r"BRA(?:\.\w+)*\s+.*?(0x[0-9a-f]+)", instruction)
            if target and int(target[1], 16) < self.addresses[end]:
                yield self.instructions[self.addresses.index(int(target[1], 16)) : end]


def touches_memory(instruction: str) -> bool:
    """Return whether an instruction reads or writes global, shared or local memory."""
    opcode = instruction.split()[0].split(".")[0]
    return opcode.startswith(MEMORY) and opcode not in ("LDC", "LDCU")


def innermost(kernel: Kernel, *opcodes: str) -> list[str]:
    """Return the shortest loop with instructions that begin with each of ``opcodes``."""
    fitting = [
        loop
        for loop in kernel.loops()
        if all(any(i.startswith(opcode) for i in loop) for opcode in opcodes)
    ]
    assert fitting, f"{kernel.name} has no loop with {opcodes}"
    return min(fitting, key=len)


@cache
def kernels(arch: str) -> dict[str, Kernel]:
    result = {}
    parts = dump("--dump-sass", "-arch", arch).split("Function : ")[1:]
    names = readable(part.split("\n", 1)[0].strip() for part in parts)
    for name, part in zip(names, parts, strict=True):
        kernel = Kernel(name)
        for address, opcode, operands in INSTRUCTION.findall(part):
            kernel.addresses.append(int(address, 16))
            kernel.instructions.append(opcode + operands)
        result[kernel.name] = kernel
    return result
