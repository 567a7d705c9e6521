# SPDX-License-Identifier: Apache-2.0
"""vocab_refill_ against Python's sort and the tests' LRU and, bit for bit, the reference."""

import pytest
import torch
from backends_under_test import ALL, COMPILED, CPU, CUDA, slow_interpreted
from compare import assert_bitwise
from generators import PINNED, VocabState, vocab_state
from hypothesis import given
from hypothesis import strategies as st
from lru import Lru, assert_holds
from torch import Tensor

from microspec_kernels import reference, vocab_refill_, vocab_update_

pytestmark = pytest.mark.backends(*COMPILED)


def order(counts: Tensor, totals: Tensor | None, ranks: Tensor) -> list[int]:
    """Sort all tokens by (count, total, rank, id)."""
    own, rank = counts.tolist(), ranks.tolist()
    total = [0] * len(own) if totals is None else totals.tolist()
    return sorted(range(len(own)), key=lambda t: (-own[t], -total[t], rank[t], t))


def recency(state: VocabState, group: int) -> list[int]:
    """Return the unpinned tokens, the least recent first."""
    pairs = zip(state.slot_stamps[group].tolist(), state.active_ids[group].tolist(), strict=True)
    return [token for stamp, token in sorted(pairs) if token >= 0 and stamp != PINNED]


def pinned_slots(state: VocabState, group: int, closed: bool = False) -> list[int]:
    is_closed = state.active_ids[group] < 0
    pinned = (state.slot_stamps[group] == PINNED) & (is_closed == closed)
    return pinned.nonzero().flatten().tolist()


def refill(
    state: VocabState,
    counts: Tensor,
    ranks: Tensor,
    lists: Tensor,
    totals: Tensor | None = None,
    pinned: int = 0,
    reset: bool = True,
) -> None:
    """Make one call, and check it against the order, an LRU, and the reference."""
    before, want = state.copy(), state.copy()
    arguments = (counts, ranks, lists)
    options = {"total_counts": totals, "pinned": pinned, "reset": reset}
    inputs = [t if t is None else t.clone() for t in (*arguments, totals)]
    vocab_refill_(*state.tensors(), *arguments, **options)
    reference.vocab_refill_(*want.tensors(), *arguments, **options)
    for t, copy in zip((*arguments, totals), inputs, strict=True):
        assert t is None or torch.equal(t, copy)
    for name in ("active_ids", "slot_stamps", "token_slots", "clock"):
        assert_bitwise(getattr(state, name), getattr(want, name), name)
    num_groups, capacity = state.active_ids.shape
    for group in range(num_groups):
        chosen = int(lists[group])
        if chosen < 0:
            for got, was in zip(state.tensors(), before.tensors(), strict=True):
                assert torch.equal(got[group], was[group])
            continue
        closed = pinned_slots(before, group, closed=True)
        assert pinned_slots(state, group, closed=True) == closed
        first = order(counts[chosen], totals, ranks)[: capacity - len(closed)]
        old = recency(before, group)
        lru = Lru(capacity, first[:pinned], len(closed))
        if reset:
            lru.see(reversed(first[pinned:]))
        else:
            unpinned = [int(before.active_ids[group, s]) for s in pinned_slots(before, group)]
            lru.see([t for t in unpinned if t not in lru.pinned])
            lru.see(old)
        assert_holds(state, group, lru)
        was, now = (
            {t: s for s, t in enumerate(x.tolist()) if t >= 0}
            for x in (before.active_ids[group], state.active_ids[group])
        )
        assert all(now[t] == was[t] for t in was.keys() & now.keys()), "a token changed its slot"
        if not reset:  # as few slots change as can be
            newcomers = lru.pinned - was.keys()
            moved = int((before.active_ids[group] != state.active_ids[group]).sum())
            assert moved == len(newcomers)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    capacity, num_groups = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    vocab_size, num_lists = draw(st.sampled_from((1, 5, 16, 40, 70))), draw(st.integers(1, 3))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    largest = draw(st.sampled_from((1, 2, 3, 2**31 - 1)))  # many ties, or none
    share = draw(st.sampled_from((0.0, 0.1, 0.5, 1.0)))  # of tokens that have a count
    counts = torch.randint(0, largest, (num_lists, vocab_size), generator=rng, dtype=torch.int32)
    counts *= torch.rand(num_lists, vocab_size, generator=rng) < share
    totals = None
    if draw(st.booleans()):
        more = torch.randint(0, 3, (vocab_size,), generator=rng)
        totals = (counts.long().sum(0).clamp(max=2**31 - 4) + more).int()
    ranks = torch.randperm(vocab_size, generator=rng).int()
    if draw(st.booleans()):  # no permutation
        ranks = torch.randint(
            0,
            draw(st.sampled_from((1, 3, 2**31 - 1))),
            ranks.shape,
            generator=rng,
            dtype=torch.int32,
        )
    start = draw(st.sampled_from((0, 10**12 - 7, 2**62 - 500)))
    pinned = tuple(range(min(draw(st.integers(0, capacity)), vocab_size)))
    closed = draw(st.sampled_from((0, 0, (capacity - len(pinned)) // 2, capacity - len(pinned))))
    state = vocab_state(
        vocab_size, capacity, num_groups=num_groups, pinned=pinned, closed=closed, clock=start
    )
    tokens = torch.randint(-1, vocab_size, (num_groups, 30), generator=rng)
    vocab_update_(*state.tensors(), tokens[:, : draw(st.integers(0, 30))].contiguous())
    lists = torch.randint(-1, num_lists, (num_groups,), generator=rng)
    return {
        "state": state, "counts": counts, "ranks": ranks, "totals": totals,
        "lists": lists.int() if draw(st.booleans()) else lists,
        "pinned": draw(st.integers(0, capacity)), "reset": draw(st.booleans()),
    }  # fmt: skip


@pytest.mark.backends(*ALL)
@given(case=cases())
def test_random_refills(case: dict[str, object]) -> None:
    refill(**case)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", ["count", "total", "rank", "id"])
def test_each_level_of_the_order_decides(level: str) -> None:
    """All tokens are equal on the levels before, and the last one that enters has none equal."""
    vocab_size, capacity = 70, 20
    by_id, equal = torch.arange(vocab_size, dtype=torch.int32), torch.ones(vocab_size).int()
    counts = (by_id * 7 % 64 if level == "count" else equal)[None]
    totals = by_id * 3 % 71 if level == "total" else equal
    ranks = equal if level == "id" else by_id * 11 % 73
    state, lists = vocab_state(vocab_size, capacity, pinned=(9,)), torch.tensor([0])
    # Few of many empty slots are taken, then some of them and of the least recently used.
    refill(state, counts, ranks, lists, totals, pinned=5, reset=False)
    vocab_update_(*state.tensors(), torch.arange(30, 40))
    refill(state, counts, ranks, lists, totals, pinned=17, reset=False)
    refill(state, counts, ranks, lists, totals, pinned=5)


def test_a_floor_that_moves_with_the_counts() -> None:
    """Between updates the floor is set anew: pinned tokens come and go, and all else stays LRU."""
    rng = torch.Generator().manual_seed(7)
    vocab_size, capacity, pinned = 300, 48, 36
    ranks = torch.arange(vocab_size, dtype=torch.int32)
    state, lists = vocab_state(vocab_size, capacity), torch.zeros(1, dtype=torch.int64)
    counts = torch.zeros(1, vocab_size, dtype=torch.int32)
    refill(state, counts, ranks, lists, pinned=pinned)
    for _ in range(6):
        tokens = torch.randint(0, vocab_size, (1, 60), generator=rng) ** 2 // vocab_size
        vocab_update_(*state.tensors(), tokens)
        counts[0, tokens.unique()] += 1
        refill(state, counts, ranks, lists, pinned=pinned, reset=False)
        assert len(pinned_slots(state, 0)) == pinned
    refill(state, counts, ranks, lists, pinned=4, reset=False)
    refill(state, counts, ranks, lists, pinned=capacity, reset=False)
    refill(state, counts, ranks, lists)


@pytest.mark.parametrize("capacity", [1000, 3072, slow_interpreted(8192), slow_interpreted(16385)])
def test_large_vocabularies(capacity: int) -> None:
    refill_and_move_the_floor(capacity, 34_000)


@pytest.mark.backends(*CPU, *CUDA)  # an emulated device takes 10 s for the 2^30 compares
def test_the_largest_capacity() -> None:
    refill_and_move_the_floor(32768, 34_000)


def refill_and_move_the_floor(capacity: int, vocab_size: int) -> None:
    """Counts of a Zipfian stream: the K-th token has equals, and most tokens have no count."""
    rng = torch.Generator().manual_seed(capacity)
    state, lists = vocab_state(vocab_size, capacity), torch.tensor([1])
    ranks = torch.randperm(vocab_size, generator=rng).int()
    counts = torch.zeros(2, vocab_size, dtype=torch.int32)
    draws = (torch.rand(60_000, generator=rng) ** 4 * vocab_size).long()
    counts[1] = torch.bincount(draws, minlength=vocab_size)
    totals = counts[1] + torch.randint(0, 2, (vocab_size,), generator=rng).int()
    refill(state, counts, ranks, lists, totals)
    vocab_update_(*state.tensors(), torch.randint(0, vocab_size, (1, 500), generator=rng))
    refill(state, counts, ranks, lists, totals, pinned=3 * capacity // 4, reset=False)


@pytest.mark.backends(*CPU)  # whose kernel takes samples
@pytest.mark.parametrize("misled", ["level of counts", "level of totals", "cut"])
def test_samples_that_mislead(misled: str) -> None:
    """Counts with a period, so that a sample sees other counts than there are."""
    capacity, by_id = 6000, torch.arange(40_960)
    state, lists = vocab_state(len(by_id), capacity), torch.tensor([0])
    sampled = by_id % (len(by_id) // 256) < 16  # 4096 of the tokens
    counts = torch.ones_like(by_id)
    totals = torch.where(by_id % (len(by_id) // 1024) == 0, 5, 1)
    if misled != "cut":
        totals = counts = torch.where(sampled, 100, torch.where(by_id % 7 == 0, 30, 0))
    if misled == "level of totals":
        counts = torch.zeros_like(by_id)
    ranks = torch.randperm(len(by_id))
    refill(state, counts.int()[None], ranks.int(), lists, totals.int())


def test_no_capacity_and_no_tokens() -> None:
    """K = 0, V = 0: nothing to fill."""
    for vocab_size, capacity in ((5, 0), (0, 4), (0, 0)):
        state = vocab_state(vocab_size, capacity)
        counts = torch.zeros(1, vocab_size, dtype=torch.int32)
        for reset in (True, False):
            refill(state, counts, counts[0].clone(), torch.tensor([0]), reset=reset)


def test_nothing_beside_the_state_is_written() -> None:
    """The state lies in larger tables of a sentinel, which must stay intact."""
    plain = vocab_state(40, 6, num_groups=2)
    outer = [t.new_full((t.size(0) + 2, *t.shape[1:]), 77) for t in plain.tensors()]
    for wide, tensor in zip(outer, plain.tensors(), strict=True):
        wide[1:-1] = tensor
    inner = VocabState(*(wide[1:-1] for wide in outer))
    counts, ranks = torch.arange(40).int()[None], torch.arange(40).int()
    for reset in (True, False):
        refill(inner, counts, ranks, torch.tensor([0, 0]), pinned=3, reset=reset)
    assert all(bool((wide[0] == 77).all() and (wide[-1] == 77).all()) for wide in outer)
