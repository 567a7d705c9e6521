# SPDX-License-Identifier: Apache-2.0
"""The ops on states that no call leaves touch nothing outside their tensors.

This file watches the memory around each tensor, which shows writes. test_sanitized_library.py and
tests/emulation see reads, too.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from backends_under_test import ALL, CPU
from hypothesis import given
from nonsense import PINNED, State, calls, counts, observed, refills
from torch import Tensor

from microspec_kernels import reference, vocab_count_, vocab_observe_, vocab_refill_, vocab_update_
from microspec_kernels._checks import PINNED_STAMP

MARGIN = 64  # elements
POISON = 0x5A


class Guarded:
    """A tensor in the middle of memory that the op must not touch."""

    def __init__(self, tensor: Tensor) -> None:
        self.memory = torch.full((tensor.numel() + 2 * MARGIN,), POISON, dtype=tensor.dtype)
        self.tensor = self.memory[MARGIN : MARGIN + tensor.numel()].view(tensor.shape)
        self.tensor.copy_(tensor)

    def whole(self) -> bool:
        margins = torch.cat((self.memory[:MARGIN], self.memory[-MARGIN:]))
        return bool((margins == POISON).all())


@pytest.mark.backends(*ALL)
@given(call=calls())
def test_nothing_around_the_state_is_written(
    call: tuple[State, Sequence[Tensor]], backend: str
) -> None:
    state, batches = call
    guarded = [Guarded(tensor) for tensor in state.tensors()]
    for tokens in batches:
        try:
            vocab_update_(*(one.tensor for one in guarded), tokens)
        except (IndexError, KeyError, ValueError, RuntimeError):
            # The reference assumes valid arguments, and PyTorch checks its indices.
            assert backend == "reference"
        assert all(one.whole() for one in guarded)


@pytest.mark.backends(*ALL)
@given(call=refills())
def test_a_refill_writes_nothing_around_the_state(
    call: tuple[State, Sequence[Tensor], dict[str, Any]],
) -> None:
    """It makes the groups that it resets valid again, but for tokens that no slot holds."""
    state, read, options = call
    closed = ((state.active_ids < 0) & (state.slot_stamps == PINNED)).sum(1).tolist()
    guarded = [Guarded(tensor) for tensor in state.tensors()]
    vocab_refill_(*(one.tensor for one in guarded), *read, **options)
    assert all(one.whole() for one in guarded)
    groups, capacity, vocab_size = state.sizes
    ids, stamps, slots, _ = (one.tensor for one in guarded)
    for group in range(groups):
        if int(read[2][group]) < 0 or not options["reset"]:
            continue
        held = ids[group][ids[group] >= 0].tolist()
        assert len(held) == len(set(held)) == min(capacity - closed[group], vocab_size)
        assert all(int(ids[group, slots[group, token]]) == token for token in held)
        pinned = min(options["pinned"], len(held))
        assert int((stamps[group] == PINNED).sum()) == pinned + closed[group]
        ordinary = stamps[group][(stamps[group] != PINNED) & (ids[group] >= 0)]
        assert ordinary.sort().values.tolist() == list(range(len(held) - pinned))


@pytest.mark.backends(*ALL)
@given(call=counts())
def test_a_count_writes_nothing_around_the_tables(
    call: tuple[Sequence[Tensor], Tensor, dict[str, Tensor]],
) -> None:
    tables, tokens, options = call
    text_counts, seen, total_counts = guarded = [Guarded(table) for table in tables]
    vocab_count_(
        text_counts.tensor, seen.tensor, tokens, **options, total_counts=total_counts.tensor
    )
    assert all(one.whole() for one in guarded)


@pytest.mark.backends(*ALL)
@given(call=observed())
def test_a_step_writes_nothing_around_its_tensors(
    call: tuple[State, Tensor, Tensor, dict[str, Any]], backend: str
) -> None:
    """Its verdicts and counts are those of the nonsense state, before the update."""
    state, tokens, tally, options = call
    want = tally.clone()
    judge_and_count = reference.observing(reference.vocab_count_, lambda *_, **__: None)
    judge_and_count(*state.tensors(), tokens, tally=want, **options)
    read = [tokens, *(value for value in options.values() if isinstance(value, Tensor))]
    before = [tensor.clone() for tensor in read]
    guarded = [Guarded(tensor) for tensor in state.tensors()]
    of_tally = Guarded(tally)
    written = [one.tensor for one in guarded]
    try:
        vocab_observe_(*written, tokens, tally=of_tally.tensor, **options)
    except (IndexError, KeyError, ValueError, RuntimeError):
        assert backend == "reference", "its update assumes a valid state"
    assert all(one.whole() for one in (*guarded, of_tally))
    assert torch.equal(of_tally.tensor, want)
    for tensor, value in zip(read, before, strict=True):
        assert torch.equal(tensor, value)


@pytest.mark.backends(*CPU)
@given(call=calls())
def test_no_mark_of_the_walk_stays(call: tuple[State, Sequence[Tensor]]) -> None:
    """A token that came and has no slot afterwards is absent, so that it can come again."""
    state, batches = call
    *_, token_slots, _ = tensors = state.tensors()
    _, capacity, _ = state.sizes
    for tokens in batches:
        before = token_slots.clone()
        vocab_update_(*tensors, tokens)
        changed = token_slots[token_slots != before]
        assert ((changed >= -1) & (changed < capacity)).all()


@pytest.mark.parametrize("mark", [-2, -3, -(2**31), 4, 2**31 - 1])
def test_a_token_with_a_nonsense_slot_may_come(mark: int) -> None:
    """Otherwise the token could never become active again."""
    ids, stamps = torch.tensor([7, 8, -1, -1]).int(), torch.tensor([[0, 1, -1, -1]])
    slots, clock = torch.full((1, 10), -1).int(), torch.tensor([2])
    slots[0, 7], slots[0, 8], slots[0, 5] = 0, 1, mark
    vocab_update_(ids, stamps, slots, clock, torch.tensor([5, 6, 5]))
    assert ids.tolist() == [7, 8, 6, 5]
    assert stamps.tolist() == [[0, 1, 3, 4]]
    assert slots[0].tolist() == [-1, -1, -1, -1, -1, 3, 2, 0, 1, -1]


def test_a_token_that_another_slot_claims_may_come() -> None:
    """token_slots marks the token as active, but its slot holds another token."""
    ids, stamps = torch.tensor([7, -1]).int(), torch.tensor([[PINNED, -1]])
    slots, clock = torch.full((1, 10), -1).int(), torch.tensor([0])
    slots[0, 7], slots[0, 5] = 0, 0
    vocab_update_(ids, stamps, slots, clock, torch.tensor([5]))
    assert ids.tolist() == [7, 5]
    assert (slots[0, 7], slots[0, 5]) == (0, 1)


def test_the_stamp_of_a_pinned_slot_is_the_package_s() -> None:
    assert PINNED == PINNED_STAMP
