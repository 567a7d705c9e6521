# SPDX-License-Identifier: Apache-2.0
"""How Triton's kernels are selected; nothing else needs Triton."""

import os
import subprocess
import sys

import pytest

MISSING = """
import sys
sys.modules["triton"] = None  # what an import then finds
import torch, microspec_kernels as m
ids = torch.tensor([1, 0], dtype=torch.int32)
assert m.sparse_head(torch.ones(1, 3), torch.ones(2, 3), ids, 1)[1].item() == 0
try:
    m.backend("triton")
except ValueError as error:
    print(error)
"""

UNUSED = """
import sys, microspec_kernels
print("triton" in sys.modules)
"""

CHOSEN = """
import torch, microspec_kernels as m
from microspec_kernels import triton_kernels
print(m.backend())
ids = torch.tensor([1, 0], dtype=torch.int32)
calls, serve = [], triton_kernels.sparse_head
triton_kernels.sparse_head = lambda *a, **k: calls.append(1) or serve(*a, **k)
logits, token_ids, _ = torch.ops.microspec.sparse_head(torch.ones(1, 3), torch.eye(2, 3), ids, 2)
print(token_ids.tolist(), logits.tolist(), len(calls))
try:
    m.sparse_head(torch.ones(1, 3), torch.eye(2, 3), ids + 1, 2)
except IndexError as error:
    print(error)
m.backend("cpu")
m.sparse_head(torch.ones(1, 3), torch.eye(2, 3), ids, 2)
print(len(calls))
"""


def python(script: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=os.environ | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_without_triton_all_else_works() -> None:
    (message,) = python(MISSING)
    assert message.startswith("backend: triton is not installed")


def test_triton_is_imported_when_needed_only() -> None:
    assert python(UNUSED) == ["False"]


def test_chosen_by_the_environment() -> None:
    pytest.importorskip("triton")
    lines = python(CHOSEN, MICROSPEC_BACKEND="triton", TRITON_INTERPRET="1")
    assert lines == [
        "triton",
        "[[0, 1]] [[1.0, 1.0]] 1",
        "microspec::sparse_head: active_ids: expected ids in [0, 2) or -1, "
        "got 2 at flat position 0",
        "1",
    ]
