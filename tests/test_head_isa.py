# SPDX-License-Identifier: Apache-2.0
"""Every instruction set of this processor, in a separate process each: it is chosen once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ALL = ("portable", "neon", "neonbf16", "avx2", "avx512", "avx512bf16", "amx")
CALL = "import torch, microspec_kernels as m; z = torch.zeros; "
CALL += "m.sparse_head(z(1, 8), z(9, 8), z(1, dtype=torch.int32), 1)"


def python(*arguments: str, isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MICROSPEC_ISA": isa}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def supported() -> list[str]:
    """Return the library's instruction sets: the error for an unknown one lists the others."""
    error = python("-c", CALL, isa="abacus").stderr.strip().splitlines()[-1]
    message = r"ValueError: microspec: MICROSPEC_ISA: expected one of (.*), got abacus"
    match = re.fullmatch(message, error)
    assert match, error
    return match[1].split(", ")


def test_the_list(supported: list[str]) -> None:
    assert supported[-1] == "portable"
    assert set(supported) <= set(ALL)
    assert len(set(supported)) == len(supported)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ALL)
def test_instruction_set(isa: str, supported: list[str]) -> None:
    if isa not in supported:
        pytest.skip(f"this processor has no {isa}: it supports {', '.join(supported)}")
    worker = Path(__file__).with_name("isa_worker.py")
    done = python(str(worker), isa=isa)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    # 357 shapes, the same of both 4-bit rows, 2 * (2 * 256 + 65536) values, 225 ends of memory
    assert int(done.stdout) == 3 * 357 + 4 * 256 + 2 * 65536 + 225
