# SPDX-License-Identifier: Apache-2.0
"""Our environment variables: an empty one counts as unset, and an unknown value is an error."""

import os
import subprocess
import sys

import pytest

SHOW = "import microspec_kernels as m; from microspec_kernels._library import instruction_set; "
SHOW += "import torch; z = torch.zeros; m.sparse_head(z(1, 8), z(9, 8), z(1, dtype=torch.int32), 1)"
SHOW += "; print(m.backend(), instruction_set())"
OURS = ("MICROSPEC", "MICROSPEC_BACKEND", "MICROSPEC_ISA", "MICROSPEC_VALIDATE")


def python(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in OURS}
    return subprocess.run(
        [sys.executable, *words], env=kept | variables, capture_output=True, text=True, timeout=300
    )


def test_empty_is_unset() -> None:
    plain = python("-c", SHOW)
    empty = python("-c", SHOW, **dict.fromkeys(OURS, ""))
    assert (empty.returncode, empty.stdout) == (0, plain.stdout), empty.stderr
    assert plain.stdout


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("MICROSPEC_ISA", r"expected one of "),
        ("MICROSPEC_BACKEND", r"expected one of cpu, cuda, triton, reference, got 'abacus'"),
        ("MICROSPEC_VALIDATE", "expected 0 or 1, got abacus"),
    ],
)
def test_what_says_nothing_is_an_error(variable: str, expected: str) -> None:
    done = python("-c", SHOW, **{variable: "abacus"})
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(f"ValueError: microspec: {variable}: ") and expected in last


def test_info_names_an_instruction_set_that_is_none() -> None:
    done = python("-m", "microspec_kernels.cli", "info", MICROSPEC_ISA="abacus")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("microspec info: microspec: MICROSPEC_ISA: expected one of ")
    assert done.stderr.endswith(", got abacus\n") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("value", ["0", "1"])
def test_both_values_of_validate(value: str) -> None:
    assert python("-c", SHOW, MICROSPEC_VALIDATE=value).returncode == 0
