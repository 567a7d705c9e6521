# SPDX-License-Identifier: Apache-2.0
"""What sparse_head and sparse_logits promise for both kinds of 4-bit rows."""

import math

import pytest
import torch
from backends_under_test import ALL, CPU, TRITON
from compare import assert_bitwise
from generators import E2M1, FLOATS, INT4, head_case, head_cases, row_indexed
from hypothesis import given
from hypothesis import strategies as st
from test_head_values import check_against_float64, check_exact

from microspec_kernels import sparse_logits
from microspec_kernels._checks import MAX_TOP_K

pytestmark = [pytest.mark.backends(*ALL), pytest.mark.slow]

# Triton's tiles have 16 or 64 rows; those of the other kernels have one and more.
NUMBERS_OF_ROWS = (1, 11, 16, 17, 65) if TRITON else (1, 2, 4, 5, 6, 11, 16, 17, 33, 65)
BOTH = pytest.mark.parametrize("rows", [INT4, E2M1], ids=["int4", "e2m1"])


@BOTH
@given(data=st.data(), k=st.integers(1, MAX_TOP_K))
def test_any_call(rows: torch.dtype, data: st.DataObject, k: int) -> None:
    """Empty slots have poisoned codes and scales of NaN, as gaps between rows have."""
    check_against_float64(data.draw(head_cases(rows=rows, dim=400)), k)


@BOTH
@given(data=st.data(), k=st.integers(1, 60))
def test_exact_arithmetic_gives_exact_ids(rows: torch.dtype, data: st.DataObject, k: int) -> None:
    """Small integers and scales of powers of two give ties everywhere and no rounding."""
    check_exact(data.draw(head_cases(exact=True, rows=rows)), k)


# Triton's tiles have 16 or 64 rows, others from one row on.
@pytest.mark.parametrize(
    "m", [1, 11, 16, 17, 65] if TRITON else [1, 2, 4, 5, 6, 11, 16, 17, 33, 65]
)
@pytest.mark.parametrize("num_groups", [None, 3])
@BOTH
def test_numbers_of_rows(rows: torch.dtype, m: int, num_groups: int | None) -> None:
    case = head_case(
        m, m=m, dim=256, capacity=75, num_groups=num_groups, dtype=torch.bfloat16,
        weight_dtype=rows, packed=True, bias=torch.float32, padding=True, softcap=30.0,
    )  # fmt: skip
    check_against_float64(case, k=9)


@pytest.mark.parametrize(
    ("rows", "value"),
    [(INT4, math.nan), (INT4, math.inf), (E2M1, math.nan)],
    ids=["int4-nan", "int4-inf", "e2m1-nan"],
)
def test_a_broken_scale_breaks_its_row_alone(rows: torch.dtype, value: float) -> None:
    case = head_case(8, m=3, dim=192, dtype=torch.bfloat16, weight_dtype=rows)
    assert case.weight_scale is not None
    want = sparse_logits(*case.tensors(), **case.options())
    slot = int((case.active_ids >= 0).nonzero()[4])
    scale = case.weight_scale.clone()
    broken = torch.full((), value).to(scale.dtype)
    row_indexed(scale)[int(case.active_ids[slot]), 4] = row_indexed(broken)
    got = sparse_logits(*case.tensors(), **(case.options() | {"weight_scale": scale}))
    others = torch.arange(len(case.active_ids)) != slot
    assert not got[:, slot].isfinite().any()
    assert bool(got[:, slot].isnan().all()) or not math.isnan(value)
    assert_bitwise(got[:, others], want[:, others])


@BOTH
def test_a_row_does_not_know_its_batch(rows: torch.dtype) -> None:
    """Slots and M decide the tile of a row, but not its logit. Sums are exact for Triton's sake."""
    case = head_case(
        9, m=23, dim=448, vocab_size=99, capacity=90, active=90, exact=True,
        dtype=torch.bfloat16, weight_dtype=rows,
    )  # fmt: skip
    whole = sparse_logits(*case.tensors(), **case.options())
    for first, last in [(0, 1), (1, 3), (3, 7), (5, 16), (22, 23)]:
        part = case.changed(hidden=case.hidden[first:last])
        assert_bitwise(sparse_logits(*part.tensors(), **part.options()), whole[first:last])
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    moved = case.changed(active_ids=case.active_ids[order])
    assert_bitwise(sparse_logits(*moved.tensors(), **moved.options()), whole[:, order])


@pytest.mark.backends(*CPU)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("rows", "dim"), [(INT4, 544), (E2M1, 528)], ids=["int4", "e2m1"])
def test_threads_and_batches_bit_for_bit(rows: torch.dtype, dim: int, dtype: torch.dtype) -> None:
    case = head_case(
        10, m=13, dim=dim, vocab_size=3000, capacity=1500, dtype=dtype, weight_dtype=rows
    )
    torch.set_num_threads(1)
    want = sparse_logits(*case.tensors(), **case.options())
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert_bitwise(sparse_logits(*case.tensors(), **case.options()), want)
    for first, last in [(0, 1), (1, 6), (4, 13)]:
        part = case.changed(hidden=case.hidden[first:last])
        assert_bitwise(sparse_logits(*part.tensors(), **part.options()), want[first:last])
