# SPDX-License-Identifier: Apache-2.0
"""Results are bitwise equal for every run, thread count, batch and order of slots.

Kernels that sum a row themselves promise this for any input. Triton's interpreter uses NumPy's
matmul, where a row's rounding depends on its position, so all sums are exact there.
"""

import pytest
import torch
from backends_under_test import COMPILED, CPU, TRITON, slow_interpreted
from compare import EPS, assert_bitwise
from generators import FLOATS, INT4, QUANTISED, HeadCase, head_case
from torch import Tensor

from microspec_kernels import sparse_head, sparse_logits
from microspec_kernels._checks import MAX_TOP_K
from microspec_kernels._library import instruction_set

pytestmark = pytest.mark.backends(*COMPILED)


@pytest.fixture
def exact(backend: str) -> bool:
    """Return whether a case needs sums that are the same in any order."""
    return backend in TRITON


def assert_logsumexp(got: Tensor, want: Tensor) -> None:
    """Assert equality within one ulp: exponentials are summed in the order of the slots."""
    ulp = 2 * EPS * 2.0 ** want.abs().log2().floor()
    assert bool(((got - want).abs() <= ulp).all())


def results(case: HeadCase, k: int = 10) -> tuple[Tensor, ...]:
    return (
        *sparse_head(*case.tensors(), k, **case.options()),
        sparse_logits(*case.tensors(), **case.options()),
    )


# A quarter megabyte of rows is enough work for several threads; every row type.
ROWS = [(dtype, rows) for dtype in FLOATS for rows in (dtype, *QUANTISED)]


def big_case(dtype: torch.dtype, weight_dtype: torch.dtype, exact: bool = False) -> HeadCase:
    return head_case(
        21, m=13, dim=515, vocab_size=3000, capacity=1500, dtype=dtype, weight_dtype=weight_dtype,
        bias=dtype, exact=exact,
    )  # fmt: skip


@pytest.mark.backends(*CPU)
@pytest.mark.parametrize(("dtype", "weight_dtype"), ROWS, ids=str)
def test_runs_and_threads(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    case = big_case(dtype, weight_dtype)
    torch.set_num_threads(1)
    want = results(case)
    for threads in (1, 2, 2, 3, 5, 2):
        torch.set_num_threads(threads)
        for got, expected in zip(results(case), want, strict=True):
            assert_bitwise(got, expected, f"with {threads} threads")


@pytest.mark.backends(*CPU)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("dtype", "weight_dtype"), ROWS, ids=str)
def test_a_row_does_not_know_its_batch(
    dtype: torch.dtype, weight_dtype: torch.dtype, grouped: bool
) -> None:
    """M changes the blocking of the panels, but no logit.

    One exception: with AMX, other instructions multiply a bf16 row that is alone in its group. It
    agrees with the others within rounding.
    """
    two_ways = instruction_set() == "amx" and dtype == weight_dtype == torch.bfloat16
    case = head_case(
        22, m=61, dim=77, vocab_size=200, capacity=90, dtype=dtype, weight_dtype=weight_dtype,
        num_groups=3 if grouped else None,
    )  # fmt: skip
    whole = results(case)
    for first, last in [(0, 1), (3, 5), (7, 12), (20, 26), (30, 37), (0, 13), (1, 61)]:
        part = case.changed(
            hidden=case.hidden[first:last],
            group_ids=None if case.group_ids is None else case.group_ids[first:last],
        )
        group_ids = torch.zeros(last - first) if part.group_ids is None else part.group_ids
        members = (group_ids[:, None] == group_ids).sum(1)
        rounded = (members == 1) & (group_ids >= 0) & two_ways
        for got, want in zip(results(part), whole, strict=True):
            want = want[first:last]
            assert_bitwise(got[~rounded], want[~rounded], f"rows {first} to {last}")
            if got.is_floating_point():
                torch.testing.assert_close(got[rounded], want[rounded], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [slow_interpreted(False), True])
@pytest.mark.parametrize(("dtype", "weight_dtype"), [*ROWS, *((d, INT4) for d in FLOATS)], ids=str)
def test_order_of_slots(
    dtype: torch.dtype, weight_dtype: torch.dtype, packed: bool, exact: bool
) -> None:
    case = head_case(
        23, m=5, dim=99, vocab_size=500, capacity=300, dtype=dtype, weight_dtype=weight_dtype,
        packed=packed, exact=exact,
    )  # fmt: skip
    logits, ids, logsumexp, z = results(case)
    for seed in range(3):
        order = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
        changes = {"active_ids": case.active_ids[order]}
        if packed:
            bytes_of_rows = case.weight.view(torch.uint8)
            changes["weight"] = bytes_of_rows[order].view(weight_dtype)
            if case.weight_scale is not None:
                changes["weight_scale"] = case.weight_scale[order]
        permuted = results(case.changed(**changes))
        assert_bitwise(permuted[0], logits)
        assert_bitwise(permuted[1], ids)
        assert_bitwise(permuted[3], z[:, order])
        assert_logsumexp(permuted[2], logsumexp)


@pytest.mark.slow_interpreted
def test_k_only_cuts(exact: bool) -> None:
    case = big_case(torch.bfloat16, torch.bfloat16, exact)
    logits, ids, logsumexp, _ = results(case, MAX_TOP_K)
    for k in (1, 2, 16, 17, MAX_TOP_K - 1):
        fewer = sparse_head(*case.tensors(), k, **case.options())
        assert_bitwise(fewer[0], logits[:, :k])
        assert_bitwise(fewer[1], ids[:, :k])
        assert_bitwise(fewer[2], logsumexp)


def test_empty_slots_change_nothing(exact: bool) -> None:
    case = head_case(24, m=6, dim=40, vocab_size=300, capacity=256, active=100, exact=exact)
    full = case.active_ids[case.active_ids >= 0]
    logits, ids, logsumexp, _ = results(case)
    want_logits, want_ids, want_logsumexp, _ = results(case.changed(active_ids=full))
    assert_bitwise(logits, want_logits)
    assert_bitwise(ids, want_ids)
    if exact:
        assert_logsumexp(logsumexp, want_logsumexp)
    else:
        assert_bitwise(logsumexp, want_logsumexp)
