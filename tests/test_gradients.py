# SPDX-License-Identifier: Apache-2.0
"""The ops and autograd: no op has a gradient, and an in-place op counts as a write."""

from typing import Any

import pytest
import torch
from bad_calls import observe_requests, update_call
from bad_tree_calls import grow_call
from generators import gather_case, vocab_state
from torch import Tensor, nn

import microspec_kernels
from microspec_kernels import (
    ActiveVocab,
    SparseHead,
    SparseLMHead,
    gather_rows_,
    sparse_head,
    sparse_logits,
    tree_grow_,
    vocab_count_,
    vocab_observe_,
    vocab_refill_,
    vocab_update_,
)

IDS = torch.arange(5, dtype=torch.int32)


def operands(trained: str) -> dict[str, Any]:
    tensors = {"hidden": torch.randn(2, 4), "weight": torch.randn(10, 4), "bias": torch.randn(10)}
    tensors[trained].requires_grad_()
    return {**tensors, "active_ids": IDS}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_a_backward_pass_is_refused(trained: str, compiled: bool) -> None:
    """Without the error, a backward pass would omit the op's part of the gradient."""

    def loss(tensors: dict[str, Any]) -> tuple[Tensor, Tensor]:
        logits, ids, logsumexp = sparse_head(k=3, **tensors)
        assert not ids.requires_grad
        other = tensors[trained].sum()  # its gradient alone would look complete
        return logits.sum() + logsumexp.sum() + other, sparse_logits(**tensors).sum() + other

    tensors = operands(trained)
    if compiled:
        with pytest.raises(Exception, match=r"sparse_head|sparse_logits|backward"):
            for value in torch.compile(loss, backend="aot_eager")(tensors):
                value.backward()
        assert tensors[trained].grad is None
        return
    for op, value in zip(("sparse_head", "sparse_logits"), loss(tensors), strict=True):
        message = f"microspec::{op}: {trained}: expected no backward pass"
        with pytest.raises(NotImplementedError, match=message):
            value.backward()
    assert tensors[trained].grad is None


def test_values_are_the_same_in_grad_mode() -> None:
    tensors = operands("hidden")
    with torch.no_grad():
        want = sparse_head(k=3, **tensors)
        assert not any(t.requires_grad for t in want)
    for got, wanted in zip(sparse_head(k=3, **tensors), want, strict=True):
        assert torch.equal(got, wanted)


def test_modules_refuse_it_too() -> None:
    head = nn.Linear(4, 10)
    vocab = ActiveVocab(10, 5, frequent_tokens=[1, 2, 3])
    hidden = torch.randn(2, 4, requires_grad=True)
    for module in (SparseHead(head.weight, vocab), SparseLMHead(head.weight, vocab, mode="packed")):
        result = module(hidden, 3)[0] if isinstance(module, SparseHead) else module(hidden)
        with pytest.raises(NotImplementedError, match="microspec::sparse"):
            result[..., 1].sum().backward()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_in_place_ops_count_as_writes(backend: str) -> None:
    """Each mutated tensor's version rises, even if nothing changed."""
    microspec_kernels.backend(backend)
    state = vocab_state(20, 5)
    case = gather_case(0, slab_dtype=torch.int8)
    assert case.slab_scale is not None
    counts, seen, total = (torch.zeros(shape, dtype=torch.int32) for shape in ((1, 20), (1, 1), 20))
    written = (*state.tensors(), case.slab, case.slab_ids, case.slab_scale, counts, seen, total)
    ranks, lists = torch.arange(20, dtype=torch.int32), torch.tensor([0])
    read = tokens, *_ = (torch.tensor([3, 4]), case.weight, case.active_ids, ranks, lists)
    for _ in range(2):
        before = [t._version for t in written], [t._version for t in read]
        vocab_update_(*state.tensors(), tokens)
        gather_rows_(**case.arguments())
        vocab_count_(counts, seen, tokens, total_counts=total)
        counted = counts._version, total._version
        vocab_refill_(*state.tensors(), counts, ranks, lists, total_counts=total)
        assert counted == (counts._version, total._version), "a refill reads them"
        assert all(t._version > v for t, v in zip(written, before[0], strict=True))
        assert [t._version for t in read] == before[1]


@pytest.mark.parametrize("counting", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_observing_writes_what_it_was_given(backend: str, counting: bool) -> None:
    microspec_kernels.backend(backend)
    arguments = observe_requests() if counting else update_call()
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    before = {name: tensor._version for name, tensor in tensors.items()}
    vocab_observe_(**arguments)
    state = {"active_ids", "slot_stamps", "token_slots", "clock"}
    risen = {name for name, tensor in tensors.items() if tensor._version > before[name]}
    assert risen == state | ({"tally"} if counting else set())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_growing_writes_the_pool(backend: str) -> None:
    microspec_kernels.backend(backend)
    arguments = grow_call()
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    before = {name: tensor._version for name, tensor in tensors.items()}
    tree_grow_(**arguments)
    risen = {name for name, tensor in tensors.items() if tensor._version > before[name]}
    assert risen == {"pool_tokens", "pool_parents", "pool_costs"}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_graph_that_saved_the_ids_refuses_their_successors(backend: str) -> None:
    microspec_kernels.backend(backend)
    vocab = ActiveVocab(20, 5, frequent_tokens=[1, 2, 3, 4, 5])
    table = torch.randn(20, requires_grad=True)
    picked = table.index_select(0, vocab.ids[0]).sum()
    vocab.update(torch.tensor([9]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        picked.backward()
