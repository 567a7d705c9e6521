# SPDX-License-Identifier: Apache-2.0
"""Tensors with a lazy sign (`torch._neg_view`, the imaginary part of `conj()`)."""

from typing import Any

import pytest
import torch
from bad_calls import count_ragged, observe_requests, refill_call, sample_call
from bad_tree_calls import grow_call
from generators import gather_case, head_case, vocab_state
from torch import Tensor

import microspec_kernels
from microspec_kernels import gather_rows_, sparse_head, sparse_logits


def negated(tensor: Tensor) -> Tensor:
    """Return the same values behind a lazy sign."""
    view: Tensor = torch._neg_view(-tensor)
    assert view.is_neg()
    return view


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["hidden", "weight", "active_ids", "bias", "group_ids"])
def test_heads_read_what_the_view_stands_for(name: str, backend: str) -> None:
    microspec_kernels.backend(backend)
    case = head_case(3, m=4, num_groups=2, bias=torch.float32)
    hidden, weight, active_ids = case.tensors()
    tensors = {"hidden": hidden, "weight": weight.nan_to_num(), "active_ids": active_ids}
    tensors |= case.options()
    lazy = {**tensors, name: negated(tensors[name])}
    assert torch.equal(sparse_logits(**lazy), sparse_logits(**tensors))
    for got, want in zip(sparse_head(k=3, **lazy), sparse_head(k=3, **tensors), strict=True):
        assert torch.equal(got, want)


GATHER = ("gather_rows_", gather_case(0).arguments())
UPDATE = ("vocab_update_", {**vars(vocab_state(20, 5)), "tokens": torch.tensor([3, 4, 3])})
COUNT = ("vocab_count_", count_ragged())
OBSERVE = ("vocab_observe_", observe_requests())
REFILL = ("vocab_refill_", refill_call())
SAMPLE = ("sparse_sample", sample_call())
GROW = ("tree_grow_", grow_call())


@pytest.mark.parametrize(
    "op, arguments, name",
    [
        (op, arguments, name)
        for op, arguments in (GATHER, UPDATE, COUNT, OBSERVE, REFILL, SAMPLE, GROW)
        for name in arguments
        if isinstance(arguments[name], Tensor)
    ],
)
def test_in_place_ops_refuse_it(op: str, arguments: dict[str, Any], name: str) -> None:
    lazy = torch._neg_view(arguments[name])
    message = f"microspec::{op}: {name}: expected a tensor without a pending sign, got a negated"
    for function in (getattr(microspec_kernels, op), getattr(torch.ops.microspec, op)):
        with pytest.raises(ValueError, match=message):
            function(**{**arguments, name: lazy})


def test_gather_rows_refuses_a_conjugated_view() -> None:
    arguments = gather_case(0).arguments()
    lazy = torch.zeros(50, 24, dtype=torch.complex64).conj()
    with pytest.raises(ValueError, match=r"weight: expected .*, got a conjugated view"):
        gather_rows_(**{**arguments, "weight": lazy})
