# SPDX-License-Identifier: Apache-2.0
"""An LRU cache written from the contract's five lines, and checks of a vocabulary's state."""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from generators import PINNED, VocabState


class Lru:
    """The unpinned tokens of one group, least recent first. Closed slots hold nothing."""

    def __init__(self, capacity: int, pinned: Iterable[int] = (), closed: int = 0) -> None:
        self.pinned = frozenset(pinned)
        self.closed = closed
        self.room = capacity - len(self.pinned) - closed
        self.tokens: OrderedDict[int, None] = OrderedDict()

    def see(self, tokens: Iterable[int]) -> None:
        held, pinned, room = self.tokens, self.pinned, self.room
        for token in tokens:
            if token < 0 or token in pinned or not room:
                continue
            if token in held:
                held.move_to_end(token)
            else:
                if len(held) == room:
                    held.popitem(last=False)
                held[token] = None


def assert_holds(state: VocabState, group: int, lru: Lru) -> None:
    """Assert that a group's state is exactly this cache: set, recency and every table."""
    ids, stamps = state.active_ids[group], state.slot_stamps[group]
    pairs = list(zip(stamps.tolist(), ids.tolist(), strict=True))
    unpinned = sorted((stamp, token) for stamp, token in pairs if token >= 0 and stamp != PINNED)
    assert [token for _, token in unpinned] == list(lru.tokens), "set or recency"
    assert len({stamp for stamp, _ in unpinned}) == len(unpinned), "two tokens with one stamp"
    assert not unpinned or unpinned[-1][0] < int(state.clock[group]), "a stamp in the future"
    kept = [token for stamp, token in pairs if stamp == PINNED]
    assert {token for token in kept if token >= 0} == lru.pinned, "pinned"
    assert kept.count(-1) == lru.closed, "closed slots"
    empty = [stamp for stamp, token in pairs if token < 0]
    assert all(stamp in (-1, PINNED) for stamp in empty), "stamps of empty slots"
    assert all(stamp >= 0 for stamp, token in pairs if token >= 0), "stamps of tokens"
    inverse = torch.full_like(state.token_slots[group], -1)
    slots = (ids >= 0).nonzero().flatten()
    inverse[ids[slots].long()] = slots.int()
    assert torch.equal(state.token_slots[group], inverse), "token_slots is not the inverse"


def assert_moved_little(before: VocabState, after: VocabState) -> None:
    """Assert that staying tokens keep their slots, and that only newcomers change slots."""
    rows = zip(before.active_ids, before.slot_stamps, after.active_ids, strict=True)
    for old, stamps, new in rows:
        was, now = ({t: s for s, t in enumerate(x.tolist()) if t >= 0} for x in (old, new))
        assert all(now[t] == was[t] for t in was.keys() & now.keys()), "a token changed its slot"
        newcomers = now.keys() - was.keys()
        assert int((old != new).sum()) == len(newcomers)
        # Free slots first, in rising order; the oldest newcomer first.
        empty = ((old < 0) & (stamps != PINNED)).nonzero().flatten().tolist()
        filled = [slot for slot in empty if new[slot] >= 0]
        assert filled == empty[: len(newcomers)], "not the lowest free slots"
