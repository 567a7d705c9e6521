# SPDX-License-Identifier: Apache-2.0
"""States of a vocabulary that no update leaves; each tensor has separate memory.

This module imports nothing of the package, because a process with another build of the library uses
it too.
"""

import math
from dataclasses import astuple, dataclass
from typing import Any

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


def integers(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """Draw int32, among them nonsense."""
    count = math.prod(shape)
    values = st.sampled_from((*INT32, 2, 3, 40))
    return torch.tensor(
        draw(st.lists(values, min_size=count, max_size=count)), dtype=torch.int32
    ).view(shape)


@st.composite
def refills(draw: st.DrawFn) -> tuple[State, list[Tensor], dict[str, Any]]:
    """Yield a state, nonsense counts and ranks, lists in [-1, C), and options of vocab_refill_."""
    state = draw(states())
    groups, capacity, vocab_size = state.sizes
    lists = draw(st.integers(1, 2))
    of_groups = draw(st.lists(st.integers(-1, lists - 1), min_size=groups, max_size=groups))
    tensors = [integers(draw, (lists, vocab_size)), integers(draw, (vocab_size,))]
    return (
        state,
        [*tensors, torch.tensor(of_groups)],
        {
            "total_counts": integers(draw, (vocab_size,)) if draw(st.booleans()) else None,
            "pinned": draw(st.integers(0, capacity)),
            "reset": draw(st.booleans()),
        },
    )


@st.composite
def counts(draw: st.DrawFn) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """Yield nonsense tables of vocab_count_, tokens, and requests and lists that may not exist."""
    lists, requests, vocab_size = (draw(st.integers(1, n)) for n in (2, 3, 70))
    tables = [
        integers(draw, shape)
        for shape in ((lists, vocab_size), (requests, (vocab_size + 31) // 32), (vocab_size,))
    ]
    values = st.sampled_from((*INT64, 2**32, 2**32 + 1, 31, 32, vocab_size - 1, vocab_size))
    tokens, owners, of_requests = (
        torch.tensor(draw(st.lists(values, min_size=n, max_size=n)), dtype=torch.int64)
        for n in (20, 20, requests)
    )
    return tables, tokens, {"token_requests": owners, "request_lists": of_requests}


@st.composite
def observed(draw: st.DrawFn) -> tuple[State, Tensor, Tensor, dict[str, Any]]:
    """Yield calls of vocab_observe_: a state, tokens, a tally of nonsense, and the other arguments.

    Valid tokens and groups are in range, because the CPU op checks them. What lies behind a row's
    length, a map's ids, requests and lists may be anything.
    """
    state = draw(states())
    groups, _, vocab_size = state.sizes
    num_lists, requests = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    rows, columns, others = (draw(st.integers(0, most)) for most in (5, 6, 9))
    bound = draw(st.integers(1, 60))

    def several(values: st.SearchStrategy[Any], *shape: int) -> Tensor:
        size = math.prod(shape)
        drawn = draw(st.lists(values, min_size=size, max_size=size))
        return torch.tensor(drawn, dtype=torch.int64).view(shape)

    tokens = several(st.integers(-1, bound - 1), rows, columns)
    lengths = several(st.sampled_from((*INT64, 0, 1, 2, 3)), rows)
    inside = torch.arange(columns) < lengths[:, None]
    tokens = tokens.where(inside, several(st.sampled_from(INT64), rows, columns))
    count = rows * columns + others
    of_lists = 1 + (vocab_size + 31) // 32 if num_lists else 0  # words of a request; see Tally
    tables = (num_lists + (num_lists > 1)) * vocab_size
    tally = integers(draw, (requests * (4 + of_lists) + tables,))
    options = {
        "num_lists": num_lists,
        "lengths": lengths,
        "candidates": several(st.integers(-1, bound - 1), others),
        "token_rows": integers(draw, (bound,)),
        "token_groups": several(st.integers(-1, groups - 1), count),
        "token_requests": several(st.sampled_from((*INT64, 2, 2**32)), count),
    }
    return state, tokens, tally, options


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
