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
def observed(draw: st.DrawFn) -> tuple[State, list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Yield calls of vocab_observe_: a state, tokens and written, tables, and the tokens' owners.

    Tokens and groups are valid, because the CPU op checks them. Requests and lists may not exist.
    """
    state = draw(states())
    groups, _, vocab_size = state.sizes
    lists, requests, count = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        draw(st.integers(0, 30)),
    )
    ragged = draw(st.booleans())
    total = count if ragged else groups * count
    shape = (count,) if ragged else (groups, count)

    def several(values: st.SearchStrategy[Any], size: int) -> Tensor:
        return torch.tensor(draw(st.lists(values, min_size=size, max_size=size)))

    tokens = several(st.integers(-1, vocab_size - 1), total).long().view(shape)
    written = several(st.booleans(), total).bool().view(shape)
    tables = {
        "verdicts": several(st.sampled_from((*INT64, PINNED)), 2 * groups).long().view(2, groups),
        "text_counts": integers(draw, (lists, vocab_size)),
        "seen": integers(draw, (requests, (vocab_size + 31) // 32)),
        "total_counts": integers(draw, (vocab_size,)),
    }
    owners = {
        "token_requests": several(st.sampled_from((*INT64, 2, 2**32)), total).long().view(shape),
        "request_lists": several(st.sampled_from((*INT64, 2**32)), requests).long(),
    }
    if ragged:
        owners["token_groups"] = several(st.integers(-1, groups - 1), total).long()
    return state, [tokens, written], tables, owners


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
