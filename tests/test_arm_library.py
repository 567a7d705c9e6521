# SPDX-License-Identifier: Apache-2.0
"""The wheel's library for Arm: the loader finds everything that it needs, except torch."""

import os
import re
import subprocess
from pathlib import Path

import arm_ops
import pytest
from backends_under_test import NO_ARM

pytestmark = [
    pytest.mark.arm,
    pytest.mark.skipif(arm_ops.tools_are_missing(), reason=NO_ARM),
]
COMPILER = "aarch64-linux-gnu-gcc"
ROOT = "/usr/aarch64-linux-gnu"  # the cross-compiler's C and C++ libraries


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def library() -> Path:
    return arm_ops.build("microspec") / "libmicrospec.so"


def versions(library: Path, prefix: str) -> set[tuple[int, ...]]:
    text = run("readelf", "--version-info", library)
    found = re.findall(rf"Name: {prefix}_([\d.]+)", text)
    return {tuple(map(int, version.split("."))) for version in found}


def test_it_asks_for_no_later_runtime_than_manylinux_2_28(library: Path) -> None:
    assert max(versions(library, "GLIBC")) <= (2, 28)
    assert max(versions(library, "GLIBCXX")) <= (3, 4, 24)  # of GCC 7, by the tag's rules


@pytest.mark.parametrize(("processor", "isa"), [("max", "neonbf16"), ("cortex-a72", "neon")])
def test_it_loads(library: Path, tmp_path: Path, processor: str, isa: str) -> None:
    needed = run("nm", "--dynamic", "--undefined-only", "--format=posix", library)
    torch = [name for name in re.findall(r"^\w+", needed, re.MULTILINE) if "torch_" in name]
    assert "torch_library_impl" in torch
    # Its static constructors register the ops; the stand-in's functions only return success.
    code = "".join(f"long {name}(void) {{ return 0; }}\n" for name in torch)
    (tmp_path / "torch.c").write_text(code)
    shared = ["-shared", "-fPIC", "-Wl,-soname,libtorch_cpu.so"]
    run(COMPILER, *shared, "-o", tmp_path / "libtorch_cpu.so", tmp_path / "torch.c")
    source = Path(__file__).parent / "arm" / "load.c"
    run(COMPILER, "-o", tmp_path / "load", source, "-ldl")
    path = f"LD_LIBRARY_PATH={tmp_path}:{ROOT}/lib"
    emulator = [arm_ops.EMULATOR, "-cpu", processor, "-L", ROOT, "-E", path]
    environment = {name: value for name, value in os.environ.items() if name != "MICROSPEC_ISA"}
    done = subprocess.run(
        [*emulator, tmp_path / "load", library], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, isa + "\n"), done.stderr
