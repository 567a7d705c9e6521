# SPDX-License-Identifier: Apache-2.0
"""sparse_head and sparse_logits against float64, and the selection bit by bit."""

import math

import pytest
import torch
from backends_under_test import ALL, COMPILED
from compare import (
    EPS,
    assert_bitwise,
    assert_close,
    assert_top_k,
    exact_topk,
    ids_by_row,
    logits_in,
    logsumexp64,
    tolerance,
)
from generators import FLOATS, QUANTISED, HeadCase, head_case, head_cases
from hypothesis import given
from hypothesis import strategies as st

from microspec_kernels import sparse_head, sparse_logits
from microspec_kernels._checks import MAX_TOP_K

pytestmark = pytest.mark.backends(*COMPILED)


def check_against_float64(case: HeadCase, k: int) -> None:
    exact, allowed = logits_in(case, torch.float64), tolerance(case)
    assert_close(sparse_logits(*case.tensors(), **case.options()), exact, allowed, "logits")
    logits, ids, logsumexp = sparse_head(*case.tensors(), k, **case.options())
    assert_top_k((logits, ids), exact, ids_by_row(case), allowed)
    # A shift of all logits shifts logsumexp equally; its own rounding is a few steps of fp32.
    want = logsumexp64(exact)
    size = float(want[want.isfinite()].abs().max()) if want.isfinite().any() else 0.0
    assert_close(logsumexp, want, allowed + 8 * EPS * max(1.0, size), "logsumexp")


@pytest.mark.backends(*ALL)
@given(case=head_cases(), k=st.integers(1, MAX_TOP_K))
def test_any_call(case: HeadCase, k: int) -> None:
    check_against_float64(case, k)


def check_exact(case: HeadCase, k: int) -> None:
    """Compare with arithmetic that does not round: ids must be exact."""
    exact = logits_in(case, torch.float64)
    assert_bitwise(sparse_logits(*case.tensors(), **case.options()) + 0.0, exact.float() + 0.0)
    logits, ids, _ = sparse_head(*case.tensors(), k, **case.options())
    want, want_ids = exact_topk(exact, ids_by_row(case), k)
    assert_bitwise(ids, want_ids, "token_ids")
    assert_bitwise(logits + 0.0, want.float() + 0.0, "logits")


@pytest.mark.backends(*ALL)
@given(case=head_cases(exact=True), k=st.integers(1, 60))
def test_exact_arithmetic_gives_exact_ids(case: HeadCase, k: int) -> None:
    """Small integers give ties everywhere and no rounding, so ids must be exact."""
    check_exact(case, k)


@given(case=head_cases(), k=st.integers(1, MAX_TOP_K))
def test_selection_equals_the_sorted_logits(case: HeadCase, k: int) -> None:
    """sparse_head's logits equal sparse_logits', so the order is exact whatever their rounding."""
    z = sparse_logits(*case.tensors(), **case.options())
    logits, ids, logsumexp = sparse_head(*case.tensors(), k, **case.options())
    want, want_ids = exact_topk(z, ids_by_row(case), k)
    assert_bitwise(ids, want_ids, "token_ids")
    assert_bitwise(logits + 0.0, want + 0.0, "logits")  # -0 may become +0
    exact_lse = logsumexp64(z)
    size = float(exact_lse[exact_lse.isfinite()].abs().max()) if exact_lse.isfinite().any() else 0.0
    assert_close(logsumexp, exact_lse, 4 * EPS * max(1.0, size), "logsumexp")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_equals_topk_over_a_dense_head(dtype: torch.dtype) -> None:
    """Test the contract's definition with a realistic shape."""
    case = head_case(1, m=10, dim=512, vocab_size=4000, capacity=1024, active=900, dtype=dtype)
    used = case.active_ids[case.active_ids >= 0].long()
    restricted = torch.full((10, 4000), -math.inf, dtype=torch.float64)
    restricted[:, used] = case.hidden.double() @ case.weight[used].double().T
    want, want_ids = restricted.topk(10)
    logits, ids, _ = sparse_head(*case.tensors(), 10)
    assert_close(logits, want, tolerance(case), "logits")
    assert_bitwise(ids, want_ids, "token_ids")  # with this seed no two logits are within rounding


@pytest.mark.parametrize("weight_dtype", [None, *QUANTISED], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_large_k_and_capacity(dtype: torch.dtype, weight_dtype: torch.dtype | None) -> None:
    """There are many times more candidates than k, so insertions and pruning alternate."""
    case = head_case(
        2,
        m=4,
        dim=33,
        vocab_size=9000,
        capacity=4000,
        active=3111,
        dtype=dtype,
        weight_dtype=weight_dtype,
        bias=dtype,
    )
    check_against_float64(case, MAX_TOP_K)


@pytest.mark.parametrize("order", [1, -1])
def test_logits_sorted_by_slot(order: int) -> None:
    """All ascending logits enter the top k; of descending ones, only the first k do."""
    count = 1000
    weight = (torch.arange(count) * order).float()[:, None]
    case = HeadCase(torch.ones(2, 1), weight, torch.arange(count, dtype=torch.int32))
    for k in (1, 15, 16, 17, MAX_TOP_K):
        logits, ids, _ = sparse_head(*case.tensors(), k)
        want, want_ids = exact_topk(logits_in(case, torch.float64), ids_by_row(case), k)
        assert_bitwise(ids, want_ids)
        assert_bitwise(logits, want.float() + 0.0)


def test_all_equal_logits_give_the_lowest_ids() -> None:
    ids = torch.randperm(3000).int()
    logits, token_ids, logsumexp = sparse_head(torch.ones(1, 5), torch.ones(3000, 5), ids, 100)
    assert_bitwise(token_ids, torch.arange(100)[None])
    assert_bitwise(logits, torch.full((1, 100), 5.0))
    assert_close(logsumexp, torch.tensor([5 + math.log(3000)]), 1e-6)


def test_float_bits_decide_not_their_leading_ones() -> None:
    """Logits differ in the last bit only, in both signs: keys must keep all 32 bits."""
    near = torch.tensor(1.0).view(torch.int32) + torch.randperm(512).int()
    values = torch.cat([near.view(torch.float32), -near.view(torch.float32)])
    case = HeadCase(torch.ones(1, 1), values[:, None], torch.arange(1024, dtype=torch.int32))
    for k in (MAX_TOP_K, 1):
        _, ids, _ = sparse_head(*case.tensors(), k)
        assert_bitwise(ids, exact_topk(values[None], ids_by_row(case), k)[1])
    _, lowest, _ = sparse_head(-case.hidden, *case.tensors()[1:], MAX_TOP_K)
    assert_bitwise(lowest, exact_topk(-values[None], ids_by_row(case), MAX_TOP_K)[1])
