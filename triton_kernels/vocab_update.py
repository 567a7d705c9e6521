# SPDX-License-Identifier: Apache-2.0
"""vocab_update_: exact LRU without a list; each slot carries the time of its last use.

Sequential LRU over a batch leaves the most recently used distinct tokens, as many as there are
unpinned slots, in whatever order the evictions happened. Three kernels compute that:

1. Mark: every token writes its position to a place where its last occurrence wins: a resident to
   its slot's stamp (atomic max), a newcomer to its entry of token_slots (atomic min of -2 -
   position).
2. Choose: the last occurrences are numbered from the newest token back. Newcomers among as many as
   there is room for are recorded; the marks of the other newcomers are removed.
3. Place: bisection finds the slots with the smallest stamps. They are freed, and the oldest
   newcomer takes the lowest of them.

These are separate kernels, not phases of one kernel with barriers between them, because on AMD a
barrier waits for shared memory only. The atomics are integer maxima and minima, so their result
does not depend on their order. Every index read from a table is checked against its range.
"""

import triton
import triton.language as tl
from torch import Tensor

from .._checks import PINNED_STAMP
from .common import on_device_of

# Tokens or slots processed at once: eight for each thread of eight warps. A step's tree and
# candidates, a few hundred tokens, take one round; a capacity of 3072 takes two.
BLOCK = 2048
PINNED = tl.constexpr(PINNED_STAMP)


@triton.jit
def _look_up(tokens, token_groups, token_slots, group, at, count, vocab_size, RAGGED: tl.constexpr):
    """Return the tokens at some positions, whether each is the group's, and their token_slots."""
    there = (at >= 0) & (at < count)
    token = tl.load(tokens + at, mask=there, other=-1)
    there = there & (token >= 0) & (token < vocab_size)
    if RAGGED:
        there = there & (tl.load(token_groups + at, mask=there, other=-1) == group)
    return token, there, tl.load(token_slots + token, mask=there, other=-1)


@triton.jit
def _count_at_most(stamps, capacity, limit, BLOCK: tl.constexpr):
    """Return the number of slots whose stamp is at most ``limit``."""
    hits = 0
    for start in range(0, capacity, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        stamp = tl.load(stamps + slot, mask=slot < capacity, other=PINNED)
        hits += tl.sum((stamp <= limit).to(tl.int32), 0)
    return hits


@triton.jit
def _eviction_threshold(stamps, capacity, wanted, clock, BLOCK: tl.constexpr):
    """Return the smallest stamp such that at least ``wanted`` slots carry it or a smaller one.

    Bisects between the oldest stamp and the newest: about twenty rounds, whatever the clock shows.
    """
    low = clock
    for start in range(0, capacity, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        stamp = tl.load(stamps + slot, mask=slot < capacity, other=PINNED)
        low = tl.minimum(low, tl.min(tl.where(stamp >= 0, stamp, PINNED), 0))
    high = clock
    if _count_at_most(stamps, capacity, -1, BLOCK) >= wanted:
        low = low * 0 - 1
        high = low
    while low < high:
        middle = low + ((high - low) >> 1)
        enough = _count_at_most(stamps, capacity, middle, BLOCK) >= wanted
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return low


@triton.jit(do_not_specialize=["capacity", "vocab_size", "count"])
def mark_kernel(
    slot_stamps,  # int64 [G, K]
    token_slots,  # int32 [G, V]
    clock,  # int64 [G]
    tokens,  # [G, N]; RAGGED: [N]
    token_groups,  # [N], when RAGGED
    capacity,
    vocab_size,
    count,  # N
    RAGGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunks = tl.cdiv(count, BLOCK)
    group = tl.program_id(0) // chunks
    slot_stamps += group.to(tl.int64) * capacity
    token_slots += group.to(tl.int64) * vocab_size
    if not RAGGED:
        tokens += group.to(tl.int64) * count
    at = tl.program_id(0) % chunks * BLOCK + tl.arange(0, BLOCK)
    token, in_group, slot = _look_up(
        tokens, token_groups, token_slots, group, at, count, vocab_size, RAGGED
    )
    # Pinned slots carry the largest possible stamp, and keep it.
    stamp = tl.load(clock + group) + at
    resident = in_group & (slot >= 0) & (slot < capacity)
    tl.atomic_max(slot_stamps + slot, stamp, mask=resident, sem="relaxed")
    tl.atomic_min(token_slots + token, -2 - at, mask=in_group & (slot < 0), sem="relaxed")


@triton.jit(do_not_specialize=["capacity", "vocab_size", "count"])
def choose_kernel(
    slot_stamps,  # int64 [G, K]
    token_slots,  # int32 [G, V]
    clock,  # int64 [G]
    tokens,  # [G, N]; RAGGED: [N]
    token_groups,  # [N], when RAGGED
    newcomers,  # int32 [G, K + 1]: positions of the chosen, newest first, then their number
    capacity,
    vocab_size,
    count,  # N
    RAGGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0)
    slot_stamps += group.to(tl.int64) * capacity
    token_slots += group.to(tl.int64) * vocab_size
    newcomers += group.to(tl.int64) * (capacity + 1)
    if not RAGGED:
        tokens += group.to(tl.int64) * count
    base = tl.load(clock + group)
    room = _count_at_most(slot_stamps, capacity, PINNED - 1, BLOCK)
    distinct = 0
    wanted = 0
    for start in range(0, count, BLOCK):
        at = count - 1 - start - tl.arange(0, BLOCK)
        token, in_group, slot = _look_up(
            tokens, token_groups, token_slots, group, at, count, vocab_size, RAGGED
        )
        resident = in_group & (slot >= 0) & (slot < capacity)
        stamp = tl.load(slot_stamps + slot, mask=resident, other=-1)
        new = in_group & (slot == -2 - at)
        last = (new | (resident & (stamp == base + at))).to(tl.int32)
        chosen = new & (distinct + tl.cumsum(last, 0) <= room)
        number = wanted + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(newcomers + number, at, mask=chosen)
        # An earlier occurrence reads the mark or its replacement; neither equals its own mark.
        tl.store(token_slots + token, -1, mask=new & (chosen == 0))
        distinct += tl.sum(last, 0)
        wanted += tl.sum(chosen.to(tl.int32), 0)
    tl.store(newcomers + capacity, wanted)


@triton.jit(do_not_specialize=["capacity", "vocab_size", "count"])
def place_kernel(
    active_ids,  # int32 [G, K]
    slot_stamps,  # int64 [G, K]
    token_slots,  # int32 [G, V]
    clock,  # int64 [G]
    tokens,  # [G, N]; RAGGED: [N]
    newcomers,  # int32 [G, K + 1]
    capacity,
    vocab_size,
    count,  # N
    RAGGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0)
    active_ids += group.to(tl.int64) * capacity
    slot_stamps += group.to(tl.int64) * capacity
    token_slots += group.to(tl.int64) * vocab_size
    newcomers += group.to(tl.int64) * (capacity + 1)
    if not RAGGED:
        tokens += group.to(tl.int64) * count
    base = tl.load(clock + group)
    wanted = tl.load(newcomers + capacity)
    if wanted > 0:
        threshold = _eviction_threshold(slot_stamps, capacity, wanted, base + count, BLOCK)
        placed = 0
        for start in range(0, capacity, BLOCK):
            slot = start + tl.arange(0, BLOCK)
            stamp = tl.load(slot_stamps + slot, mask=slot < capacity, other=PINNED)
            freed = stamp <= threshold
            number = placed + tl.cumsum(freed.to(tl.int32), 0) - 1
            # Only empty slots share a stamp; the lowest of them go first.
            freed = freed & (number < wanted)
            at = tl.load(newcomers + wanted - 1 - number, mask=freed, other=0)
            token = tl.load(tokens + at, mask=freed, other=0).to(tl.int32)
            gone = tl.load(active_ids + slot, mask=freed, other=-1)
            tl.store(token_slots + gone, -1, mask=(gone >= 0) & (gone < vocab_size))
            tl.store(token_slots + token, slot, mask=freed)
            tl.store(active_ids + slot, token, mask=freed)
            tl.store(slot_stamps + slot, base + at, mask=freed)
            placed += tl.sum(freed.to(tl.int32), 0)
    # Store the clock last: by then every warp that needs it has read the old value.
    tl.store(clock + group, base + count)


def vocab_update_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    *,
    token_groups: Tensor | None = None,
) -> None:
    """Compute :func:`microspec_kernels.vocab_update_` in Triton, without its checks."""
    num_groups, vocab_size = token_slots.shape
    capacity, count = active_ids.size(-1), tokens.size(-1)
    if not count:
        return
    ragged = token_groups is not None
    newcomers = active_ids.new_empty((num_groups, capacity + 1))
    tables = (slot_stamps, token_slots, clock, tokens)
    stream = (*tables, token_groups if ragged else tokens)
    sizes = (capacity, vocab_size, count)
    options = {"RAGGED": ragged, "BLOCK": BLOCK, "num_warps": 8}
    with on_device_of(active_ids):
        mark_kernel[(num_groups * triton.cdiv(count, BLOCK),)](*stream, *sizes, **options)
        choose_kernel[(num_groups,)](*stream, newcomers, *sizes, **options)
        place_kernel[(num_groups,)](active_ids, *tables, newcomers, *sizes, **options)
