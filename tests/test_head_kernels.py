# SPDX-License-Identifier: Apache-2.0
"""Shapes that reach each path through the CUDA kernels, on every backend.

The path depends on the expected rows per group (multiply-adds up to 4, except over 4-bit rows;
then tiles of 16, 32 and 64 rows), on D (whole blocks of 64 bytes for the tensor cores, in one split
or several), on alignment, and on K (keys in registers up to 4096, in shared memory, in global
memory).
"""

import pytest
import torch
from backends_under_test import COMPILED, SMALL, slow_interpreted
from compare import assert_bitwise, exact_topk, ids_by_row
from generators import INT4, HeadCase, head_case
from test_head_values import check_against_float64

from microspec_kernels import sparse_head, sparse_logits
from microspec_kernels._checks import MAX_TOP_K

pytestmark = pytest.mark.backends(*COMPILED)

HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("m", [1, 2, 4, 5, 16, 17, 32, 33, 64, 65])
def test_numbers_of_rows(m: int) -> None:
    check_against_float64(head_case(m, m=m, dim=128, capacity=37, dtype=torch.bfloat16), k=10)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("weight_dtype", [None, torch.int8, torch.float8_e4m3fn, INT4])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("m", [3, 10])
def test_types(dtype: torch.dtype, weight_dtype: torch.dtype | None, packed: bool, m: int) -> None:
    case = head_case(
        7,
        m=m,
        dim=192,
        capacity=29,
        dtype=dtype,
        weight_dtype=weight_dtype,
        packed=packed,
        bias=torch.float32,
    )
    check_against_float64(case, k=5)


@pytest.mark.parametrize("dim", [32, 64, 96, 480, 544, 1056])
def test_dims_in_whole_blocks(dim: int) -> None:
    """Each warp has less than a block or exactly one, or the last warps have a remainder."""
    check_against_float64(head_case(dim, m=9, dim=dim, capacity=21, dtype=torch.float16), k=3)


@pytest.mark.parametrize(
    ("dtype", "dim"), [(torch.float32, 4100), (torch.float32, 8197), (torch.bfloat16, 8200)]
)
def test_few_rows_of_a_long_dimension(dtype: torch.dtype, dim: int) -> None:
    """D exceeds the lanes of a block, so several passes add up their sums."""
    check_against_float64(head_case(dim, m=2, dim=dim, capacity=11, dtype=dtype), k=4)


@pytest.mark.backends(*COMPILED, *SMALL)
@pytest.mark.parametrize(("m", "dim"), [(10, 4160), (20, 2112), (40, 1088), (40, 2144), (40, 4128)])
def test_several_splits_of_the_dimension(m: int, dim: int) -> None:
    """Hidden exceeds a block's registers, so two to five partial sums are added at the end."""
    check_against_float64(head_case(dim, m=m, dim=dim, capacity=19, dtype=torch.bfloat16), k=4)


@pytest.mark.backends(*COMPILED, *SMALL)
@pytest.mark.parametrize("active", [200, 90, 3])
def test_more_slots_than_the_ring_holds(active: int) -> None:
    """Each place in shared memory is filled several times; some runs have no row."""
    case = head_case(
        active, m=6, dim=1024, vocab_size=300, capacity=200, active=active, dtype=torch.bfloat16
    )
    check_against_float64(case, k=10)


@pytest.mark.parametrize("m", [3, 12, 40])
@pytest.mark.parametrize("num_groups", [2, 5])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_many_groups(m: int, num_groups: int, packed: bool) -> None:
    """Rows are unordered and some are padding; groups have no rows, or more than a tile."""
    case = head_case(
        m,
        m=m,
        dim=64,
        capacity=25,
        num_groups=num_groups,
        dtype=torch.float16,
        packed=packed,
        padding=True,
    )
    check_against_float64(case, k=6)
    lopsided = case.changed(group_ids=torch.zeros(m, dtype=torch.int64))
    finite = lopsided.changed(hidden=case.hidden.nan_to_num(0.5))
    check_against_float64(finite, k=6)


@pytest.mark.parametrize("m", [1, 3, 12, slow_interpreted(40), slow_interpreted(300)])
@pytest.mark.parametrize("group", [-1, 0, 1])
def test_one_group_for_all_rows(m: int, group: int) -> None:
    """One id [1] gives the bits of [M] equal ids; 300 rows need two launches."""
    case = head_case(
        m, m=m, dim=64, capacity=25, num_groups=2, dtype=torch.float16, packed=True, one_group=True
    )
    for dtype in (torch.int32, torch.int64):
        one = case.changed(group_ids=torch.tensor([group], dtype=dtype))
        each = case.changed(group_ids=torch.full((m,), group, dtype=dtype))
        check_against_float64(one, k=6)
        for got, want in zip(both_results(one), both_results(each), strict=True):
            assert_bitwise(got, want)


def both_results(case: HeadCase) -> tuple[torch.Tensor, ...]:
    logits = sparse_logits(*case.tensors(), **case.options())
    return (*sparse_head(*case.tensors(), 6, **case.options()), logits)


@pytest.mark.parametrize("num_groups", [None, slow_interpreted(3)])
def test_more_rows_than_one_launch(num_groups: int | None) -> None:
    """300 rows need two launches."""
    case = head_case(
        5,
        m=300,
        dim=32,
        capacity=9,
        num_groups=num_groups,
        dtype=torch.bfloat16,
        padding=num_groups == 3,
    )
    check_against_float64(case, k=4)


@pytest.mark.backends(*COMPILED, *SMALL)
@pytest.mark.parametrize("capacity", [4096, 4097, 9000, slow_interpreted(32768)])
def test_many_slots(capacity: int) -> None:
    """At these K the keys move from registers to shared memory and to global memory."""
    case = head_case(
        capacity, m=2, dim=8, vocab_size=capacity + 5, capacity=capacity, dtype=torch.float32
    )
    check_largest_of_many(case, k=MAX_TOP_K)


def check_largest_of_many(case: HeadCase, k: int) -> None:
    """Compare the selection with the backend's own logits, which smaller sizes test."""
    z = sparse_logits(*case.tensors(), **case.options())
    logits, ids, _ = sparse_head(*case.tensors(), k, **case.options())
    want, want_ids = exact_topk(z, ids_by_row(case), k)
    assert_bitwise(logits, want, "logits")
    assert_bitwise(ids, want_ids, "token_ids")


@pytest.mark.parametrize("gap", [1, 8])
def test_rows_of_hidden_apart(gap: int) -> None:
    """A gap of 8 elements allows 16-byte accesses, a gap of 1 does not."""
    check_against_float64(
        head_case(3, m=10, dim=64, capacity=20, dtype=torch.float16, gap=gap), k=3
    )
