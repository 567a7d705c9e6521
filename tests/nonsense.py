# SPDX-License-Identifier: Apache-2.0
"""States of a vocabulary that no update leaves; each tensor has separate memory.

This module imports nothing of the package, because a process with another build of the library uses
it too.
"""

from dataclasses import astuple, dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

PINNED = 2**63 - 1  # _checks.PINNED_STAMP; test_nonsense.py compares the two
INT32 = (-(2**31), -(2**31) + 1, -3, -2, -1, 0, 1, 2**31 - 1)
INT64 = (-(2**63), -(2**63) + 1, -(2**62), -3, -2, -1, 0, 1, 5, 2**31, 2**62, 2**63 - 3, 2**63 - 2)


@dataclass(frozen=True)
class State:
    active_ids: Tensor
    slot_stamps: Tensor
    token_slots: Tensor
    clock: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return astuple(self)  # copies with separate memory

    @property
    def sizes(self) -> tuple[int, int, int]:
        groups, capacity = self.active_ids.shape
        return groups, capacity, self.token_slots.size(1)


@st.composite
def states(draw: st.DrawFn) -> State:
    groups, capacity = draw(st.integers(1, 3)), draw(st.integers(0, 9))
    vocab_size = draw(st.integers(1, 24))

    def array(shape: tuple[int, int], values: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = shape[0] * shape[1]
        drawn = draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))
        return torch.tensor(drawn, dtype=dtype).view(shape)

    ids = (*INT32, *range(vocab_size), vocab_size, vocab_size + 1)
    slots = (*INT32, *range(capacity), capacity, capacity + 1)
    clock = array((1, groups), (*INT64, PINNED), torch.int64)[0]
    stamps = (*INT64, PINNED, *clock.tolist())
    return State(
        array((groups, capacity), ids, torch.int32),
        array((groups, capacity), stamps, torch.int64),
        array((groups, vocab_size), slots, torch.int32),
        clock,
    )


@st.composite
def calls(draw: st.DrawFn) -> tuple[State, list[Tensor]]:
    """Yield a state, and successive batches of ids in [-1, V)."""
    state = draw(states())
    groups, _, vocab_size = state.sizes
    batches = []
    for _ in range(draw(st.integers(1, 4))):
        count = groups * draw(st.integers(0, 30))
        ids = draw(st.lists(st.integers(-1, vocab_size - 1), min_size=count, max_size=count))
        batches.append(torch.tensor(ids, dtype=torch.int64).view(groups, -1))
    return state, batches
