# SPDX-License-Identifier: Apache-2.0
"""Ids and groups out of range on CUDA, which does not check them: empty slots, never read."""

import pytest
import torch
from backends_under_test import CUDA, EMULATED, slow_interpreted
from compare import assert_bitwise
from generators import HeadCase, head_case
from torch import Tensor

from microspec_kernels import sparse_head, sparse_logits

pytestmark = pytest.mark.backends(*EMULATED, *CUDA)

V = 50
WRONG = [V, -2, 2**31 - 1, -(2**31)]


def results(case: HeadCase) -> tuple[Tensor, ...]:
    logits = sparse_logits(*case.tensors(), **case.options())
    return (*sparse_head(*case.tensors(), 7, **case.options()), logits)


@pytest.mark.parametrize("m", [2, 9])
@pytest.mark.parametrize("packed", [False, True])
def test_ids_out_of_range_are_empty_slots(packed: bool, m: int) -> None:
    case = head_case(
        1, m=m, dim=64, vocab_size=V, capacity=30, active=20, dtype=torch.bfloat16,
        packed=packed, bias=torch.float32,
    )  # fmt: skip
    assert (case.active_ids < 0).sum() == 10
    wrong = case.active_ids.clone()
    empty = (wrong < 0).nonzero().flatten()
    wrong[empty[:8]] = torch.tensor(WRONG * 2, dtype=torch.int32)
    for got, want in zip(results(case.changed(active_ids=wrong)), results(case), strict=True):
        assert_bitwise(got, want)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("m", [3, slow_interpreted(12)])
def test_groups_out_of_range_are_padding_rows(m: int, dtype: torch.dtype) -> None:
    case = head_case(2, m=m, dim=64, capacity=20, num_groups=3, dtype=torch.float16)
    padding = torch.arange(m, dtype=dtype) % 4 - 1
    wrong = padding.clone()
    values = [3, -2, 2**31 - 1, -(2**31)] + [2**32, 2**32 + 1] * (dtype == torch.int64)
    at = (padding < 0).nonzero().flatten()
    for value in values:
        wrong[at] = torch.tensor(value, dtype=dtype)
        got, want = (results(case.changed(group_ids=groups)) for groups in (wrong, padding))
        for one, other in zip(got, want, strict=True):
            assert_bitwise(one, other, f"group {value}")
