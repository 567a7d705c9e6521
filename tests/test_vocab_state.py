# SPDX-License-Identifier: Apache-2.0
"""load_state_dict: the states that a vocabulary rejects."""

import re
from typing import Any

import pytest
import torch
from compare import assert_bitwise
from hypothesis import given
from nonsense import State, states

from microspec_kernels import ActiveVocab
from microspec_kernels._checks import PINNED_STAMP as PINNED


def filled() -> ActiveVocab:
    vocab = ActiveVocab(20, 4, num_groups=2, pinned=[9])
    vocab.update(torch.tensor([[1, 2, 3], [4, 5, -1]]))
    return vocab


def test_the_state_that_the_rows_below_change() -> None:
    state = filled().state_dict()
    assert state["ids"].tolist() == [[9, 1, 2, 3], [9, 4, 5, -1]]
    assert state["slot_stamps"].tolist() == [[PINNED, 0, 1, 2], [PINNED, 0, 1, -1]]
    assert state["clock"].tolist() == [3, 3]
    ActiveVocab(20, 4, num_groups=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "place", "value", "expected", "got"),
    [
        ("ids", (0, 1), 20, "values in [-1, 20)", "20 in group 0"),
        ("ids", (1, 3), -2, "values in [-1, 20)", "-2 in group 1"),
        ("ids", (1, 2), 4, "distinct values", "4 in group 1"),
        ("ids", (1, 2), 6, "the slot of each active token", "-1 in group 1"),
        ("ids", (1, 2), -1, "-1 at empty slots", "1 in group 1"),
        ("token_slots", (0, 7), 4, "values in [-1, 4)", "4 in group 0"),
        ("token_slots", (0, 7), -2, "values in [-1, 4)", "-2 in group 0"),
        ("token_slots", (0, 7), 2, "as many tokens with a slot as ids has", "5 in group 0"),
        ("token_slots", (0, 1), 2, "the slot of each active token", "2 in group 0"),
        ("token_slots", (0, 1), -1, "the slot of each active token", "-1 in group 0"),
        ("clock", (1,), -1, f"values in [0, {2**62 + 1})", "-1 in group 1"),
        ("clock", (0,), PINNED, f"values in [0, {2**62 + 1})", f"{PINNED} in group 0"),
        ("clock", (0,), 2, "stamps in [0, clock), or 2^63 - 1 where pinned", "2 in group 0"),
        ("slot_stamps", (0, 1), 3, "stamps in [0, clock), or 2^63 - 1", "3 in group 0"),
        ("slot_stamps", (0, 1), -1, "stamps in [0, clock), or 2^63 - 1", "-1 in group 0"),
        ("slot_stamps", (0, 1), 2, "distinct values", "2 in group 0"),
        ("slot_stamps", (1, 3), 2, "-1 at empty slots", "2 in group 1"),
    ],
)
def test_an_inconsistent_state(
    name: str, place: tuple[int, ...], value: int, expected: str, got: str
) -> None:
    state, vocab = filled().state_dict(), ActiveVocab(20, 4, num_groups=2)
    before = vocab.state_dict()
    state[name][place] = value
    with pytest.raises(ValueError, match=r"^ActiveVocab: state_dict: \w+: expected ") as raised:
        vocab.load_state_dict(state)
    assert f"expected {expected}" in str(raised.value)
    assert str(raised.value).endswith(f", got {got}")
    for key, tensor in vocab.state_dict().items():
        assert_bitwise(tensor, before[key], key)


def test_closed_slots_are_the_last() -> None:
    state, vocab = ActiveVocab(20, 4).state_dict(), ActiveVocab(20, 4)
    state["slot_stamps"][0, 2:] = PINNED
    vocab.load_state_dict(state)
    assert vocab.limit.tolist() == [2]
    state["slot_stamps"][0, 3] = -1
    with pytest.raises(ValueError, match="expected no open slot behind a closed one, got 9"):
        vocab.load_state_dict(state)
    assert vocab.limit.tolist() == [2]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ids", lambda t: t.long(), "ids: expected int32, got int64"),
        ("clock", lambda t: t.float(), "clock: expected int64, got float32"),
        ("slot_stamps", lambda t: t.tolist(), "slot_stamps: expected a tensor, got list"),
    ],
)
def test_another_kind(name: str, change: Any, message: str) -> None:
    state, vocab = filled().state_dict(), filled()
    state[name] = change(state[name])
    with pytest.raises(TypeError, match=re.escape(f"ActiveVocab: state_dict: {message}")):
        vocab.load_state_dict(state)


@given(state=states())
def test_nonsense_is_refused_or_works(state: State) -> None:
    """An accepted state behaves like a vocabulary: a token that comes is active."""
    num_groups, capacity, vocab_size = state.sizes
    if capacity == 0:
        return
    vocab = ActiveVocab(vocab_size, capacity, num_groups=num_groups)
    names = ("ids", "slot_stamps", "token_slots", "clock")
    try:
        vocab.load_state_dict(dict(zip(names, state.tensors(), strict=True)))
    except ValueError:
        assert vocab.size.tolist() == [0] * num_groups
        return
    newest = torch.full((num_groups, 1), vocab_size - 1)
    vocab.update(newest)
    room = (vocab.slot_stamps != PINNED).any(1)
    assert torch.equal(
        vocab.contains(newest)[:, 0] | ~room, torch.ones(num_groups, dtype=torch.bool)
    )
