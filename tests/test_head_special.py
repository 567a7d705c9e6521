# SPDX-License-Identifier: Apache-2.0
"""NaN, infinities, empty inputs, and extreme scalars."""

import math

import pytest
import torch
from backends_under_test import ALL, COMPILED
from compare import assert_bitwise, assert_close, exact_topk, ids_by_row, logits_in, logsumexp64
from generators import FLOATS, HeadCase, head_case
from hypothesis import given
from hypothesis import strategies as st

from microspec_kernels import sparse_head, sparse_logits

pytestmark = pytest.mark.backends(*COMPILED)

INF, NAN = math.inf, math.nan
SPECIAL = [INF, -INF, NAN, 0.0, -0.0, 1.0, -1.0, 3.0e38, -3.0e38, 1e-30]


def one_dim(values: list[float], ids: list[int] | None = None) -> HeadCase:
    """Make a case whose logits are exactly these numbers: D = 1, x = 1."""
    at = torch.arange(len(values)) if ids is None else torch.tensor(ids)
    weight = torch.zeros(int(at.max()) + 1 if len(at) else 1, 1)
    weight[at.long()] = torch.tensor(values)[:, None]
    return HeadCase(torch.ones(1, 1), weight, at.int())


@pytest.mark.backends(*ALL)
@given(
    values=st.lists(st.sampled_from(SPECIAL), min_size=1, max_size=70),
    k=st.integers(1, 80),
    seed=st.integers(0, 999),
)
def test_special_logits(values: list[float], k: int, seed: int) -> None:
    """The order is total: numbers with infinities, then NaN, then padding."""
    ids = torch.randperm(len(values) + 5, generator=torch.Generator().manual_seed(seed))
    case = one_dim(values, ids[: len(values)].tolist())
    z = torch.tensor([values])
    assert_bitwise(sparse_logits(*case.tensors()) + 0.0, z + 0.0)
    logits, token_ids, logsumexp = sparse_head(*case.tensors(), k)
    want, want_ids = exact_topk(z, ids_by_row(case), k)
    assert_bitwise(token_ids, want_ids, "token_ids")
    assert_bitwise(logits + 0.0, want + 0.0, "logits")
    assert_close(logsumexp, logsumexp64(z).float(), 4e-6 * 1.0, "logsumexp")


def test_nan_ranks_below_minus_infinity_and_above_padding() -> None:
    case = one_dim([NAN, -INF, NAN, 2.0], [4, 3, 0, 7])
    logits, ids, logsumexp = sparse_head(*case.tensors(), 6)
    assert_bitwise(logits, torch.tensor([[2.0, -INF, NAN, NAN, -INF, -INF]]))
    assert ids.tolist() == [[7, 3, 0, 4, -1, -1]]
    assert math.isnan(logsumexp.item())


@pytest.mark.parametrize("other", [INF, -INF, 1.0])
def test_one_nan_anywhere_makes_logsumexp_nan(other: float) -> None:
    """The NaN is in a whole or a partial chunk, also beside infinities, which end the sum early."""
    for count in (1, 2, 3, 8, 17, 40):
        for position in range(count):
            values = [other] * count
            values[position] = NAN
            assert sparse_head(*one_dim(values).tensors(), 1)[2].isnan().all(), (count, position)


def test_both_signs_of_nan_rank_last() -> None:
    bits = torch.tensor([0x7FC00000, -0x400000, 0x7F800001], dtype=torch.int32)
    weight = torch.cat([bits.view(torch.float32), torch.tensor([-5.0])])[:, None]
    _, ids, _ = sparse_head(
        torch.ones(1, 1), weight, torch.tensor([1, 2, 0, 3], dtype=torch.int32), 4
    )
    assert ids.tolist() == [[3, 0, 1, 2]]


def test_a_nan_row_of_hidden_leaves_the_others_alone() -> None:
    case = head_case(3, m=7, dim=40)
    clean = sparse_head(*case.tensors(), 5)
    hidden = case.hidden.clone()
    hidden[3, 17] = NAN
    logits, ids, logsumexp = sparse_head(hidden, *case.tensors()[1:], 5)
    others = [0, 1, 2, 4, 5, 6]
    for got, want in zip((logits, ids, logsumexp), clean, strict=True):
        assert_bitwise(got[others], want[others])
    assert logits[3].isnan().all()
    assert logsumexp[3].isnan()
    active = case.active_ids[case.active_ids >= 0].long()
    assert_bitwise(ids[3], active.sort().values[:5])


def test_an_infinite_activation() -> None:
    case = head_case(4, m=2, dim=19)
    hidden = case.hidden.clone()
    hidden[1, 18] = INF
    z = sparse_logits(hidden, *case.tensors()[1:])
    sign = case.weight[case.active_ids.clamp(min=0).long(), 18].sign()
    want = torch.where(case.active_ids >= 0, sign * INF, -INF)
    assert_bitwise(z[1], want)
    assert z[0][case.active_ids >= 0].isfinite().all()
    assert sparse_head(hidden, *case.tensors()[1:], 1)[2][1] == INF


@pytest.mark.backends(*ALL)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("num_groups", [None, 2])
def test_empty_vocabulary(packed: bool, num_groups: int | None) -> None:
    for capacity in (0, 9):
        case = head_case(
            5,
            m=4,
            capacity=capacity,
            active=0,
            packed=packed,
            num_groups=num_groups,
            bias=torch.float32,
        )
        logits, ids, logsumexp = sparse_head(*case.tensors(), 3, **case.options())
        assert_bitwise(logits, torch.full((4, 3), -INF))
        assert_bitwise(ids, torch.full((4, 3), -1))
        assert_bitwise(logsumexp, torch.full((4,), -INF))
        z = sparse_logits(*case.tensors(), **case.options())
        assert_bitwise(z, torch.full((4, capacity), -INF))


@pytest.mark.backends(*ALL)
def test_padding_rows_and_one_empty_group() -> None:
    case = head_case(6, m=5, num_groups=3)
    ids = case.active_ids.clone()
    ids[1] = -1
    groups = torch.tensor([2, -1, 1, 0, -1])
    hidden = case.hidden.clone()
    hidden[groups < 0] = NAN
    logits, token_ids, logsumexp = sparse_head(hidden, case.weight, ids, 4, group_ids=groups)
    nothing = torch.tensor([1, 2, 4])
    assert_bitwise(logits[nothing], torch.full((3, 4), -INF))
    assert_bitwise(token_ids[nothing], torch.full((3, 4), -1))
    assert_bitwise(logsumexp[nothing], torch.full((3,), -INF))
    assert logits[[0, 3]].isfinite().all()
    z = sparse_logits(hidden, case.weight, ids, group_ids=groups)
    assert_bitwise(z[nothing], torch.full((3, 20), -INF))


@pytest.mark.parametrize("shape", [(0, 24), (3, 0), (0, 0)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_no_rows_or_no_elements(shape: tuple[int, int], dtype: torch.dtype) -> None:
    case = head_case(7, m=shape[0], dim=shape[1], dtype=dtype, bias=torch.float32, logit_scale=0.5)
    logits, ids, _ = sparse_head(*case.tensors(), 4, **case.options())
    want, want_ids = exact_topk(logits_in(case, torch.float64), ids_by_row(case), 4)
    assert_bitwise(ids, want_ids)
    assert_bitwise(logits, want.float())


@pytest.mark.backends(*ALL)
def test_scalars_arrive() -> None:
    """0.5 read as a float of the wrong width is 0 or noise."""
    case = one_dim([1.0, 3.0, -7.0])
    z = torch.tensor([[1.0, 3.0, -7.0]])
    assert_bitwise(sparse_logits(*case.tensors(), logit_scale=0.5), z * 0.5)
    capped = sparse_logits(*case.tensors(), softcap=0.5)
    assert_close(capped, 0.5 * torch.tanh(z.double() / 0.5), 1e-7)
    both = sparse_head(*case.tensors(), 3, logit_scale=0.5, softcap=2.0)[0]
    assert_close(both, 2 * torch.tanh(torch.tensor([[3.0, 1.0, -7.0]]).double() / 4), 3e-7)
    assert_bitwise(sparse_logits(*case.tensors(), logit_scale=-1.0, softcap=0.0), -z)


def test_scale_and_cap_apply_after_the_bias() -> None:
    case = one_dim([1.0, 3.0]).changed(bias=torch.tensor([4.0, -8.0]))
    z = sparse_logits(*case.tensors(), bias=case.bias, logit_scale=0.5)
    assert_bitwise(z, torch.tensor([[2.5, -2.5]]))
    capped = sparse_logits(*case.tensors(), bias=case.bias, logit_scale=0.5, softcap=1.0)
    assert_close(capped, torch.tanh(torch.tensor([[2.5, -2.5]]).double()), 2e-7)


def test_a_capped_tie_goes_to_the_lower_id() -> None:
    """tanh saturates: different logits become equal, and equal logits are in order of id."""
    case = one_dim([50.0, 900.0, 70.0, -1.0], [9, 5, 2, 1])
    logits, ids, _ = sparse_head(*case.tensors(), 4, softcap=1.0)
    assert ids.tolist() == [[2, 5, 9, 1]]
    assert logits[0, :3].tolist() == [1.0, 1.0, 1.0]


def test_logsumexp_of_far_apart_and_huge_logits() -> None:
    for values, want in [
        ([3.0e38, -3.0e38], 3.0e38),
        ([-1e4, -1e4], -1e4 + math.log(2)),
        ([0.0, -80.0, -100.0, -200.0], 0.0),
        ([1.0, 1.0 - 2e-7], 1.0 - 1e-7 + math.log(2)),
        ([INF, INF], INF),
        ([-INF, -INF], -INF),
        ([INF, -INF, 1.0], INF),
    ]:
        got = sparse_head(*one_dim(values).tensors(), 1)[2]
        assert_close(
            got,
            torch.tensor([want], dtype=torch.float64),
            abs(want) * 1.2e-7 if math.isfinite(want) else 0,
        )
