# SPDX-License-Identifier: Apache-2.0
"""vocab_refill_: the first tokens of an order of counts and ranks fill a vocabulary.

1. Select: bisection finds the last wanted token, one level of the order after the other: its
   count, its total count, its rank, its id. On every level the larger value comes first (ranks and
   ids are subtracted from the largest). Wanted tokens without a slot are the newcomers.
2. Keep: marks the slots whose token is wanted. Without RESET, tokens that lose their pin become the
   least recently used.
3. Place: the newcomers take the free slots: all that are not kept, or the least recently used ones,
   which another bisection finds.
4. Stamp, after a RESET: a token's position in the order is the number of tokens that come before.

These are separate kernels for the reason that vocab_update.py gives. Every index read from a table
is checked against its range.
"""

import triton
import triton.language as tl
from torch import Tensor

from .._checks import EMPTY_STAMP, PINNED_STAMP
from .common import INTERPRETED, on_device_of

# Tokens or slots processed at once: eight for each thread of eight warps. The first kernel has
# sixteen warps, because one program sweeps over all V tokens. The last kernel compares the places
# of STAMPED slots with those of COMPARED others at once. Large tiles cost Triton's interpreter
# little more than small ones.
BLOCK, STAMPED, COMPARED = (16384, 256, 2048) if INTERPRETED else (2048, 32, 128)
LARGEST = tl.constexpr(2**31 - 1)
PINNED = tl.constexpr(PINNED_STAMP)
EMPTY = tl.constexpr(EMPTY_STAMP)
LAST_WORDS = 6  # of a group's newcomers: their number, that of wanted tokens, the last one's levels


@triton.jit
def _places(counts, totals, ranks, token, there, TOTALS: tl.constexpr):
    """Return the tokens' places: two numbers, the larger comes first; 0 for no token."""
    count = tl.maximum(tl.load(counts + token, mask=there, other=0), 0).to(tl.int64) << 32
    if TOTALS:
        count += tl.maximum(tl.load(totals + token, mask=there, other=0), 0)
    rank = LARGEST - tl.maximum(tl.load(ranks + token, mask=there, other=LARGEST), 0)
    return count, tl.where(there, (rank.to(tl.int64) << 32) + (LARGEST - token), 0)


@triton.jit
def _comes_before(count, rest, other_count, other_rest):
    """Return whether places come before others."""
    return (count > other_count) | ((count == other_count) & (rest > other_rest))


@triton.jit
def _tied_values(
    counts, totals, ranks, first, vocab_size, last_count, last_total, last_rank,
    LEVEL: tl.constexpr, TOTALS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return a tile's values on one level; -1 if the token differs on a level before."""
    token = first + tl.arange(0, BLOCK)
    tied = token < vocab_size
    value = tl.maximum(tl.load(counts + token, mask=tied, other=0), 0)
    if LEVEL > 0:
        tied = tied & (value == last_count)
        value = tl.zeros_like(token)
        if TOTALS:
            value = tl.maximum(tl.load(totals + token, mask=tied, other=0), 0)
    if LEVEL > 1:
        tied = tied & (value == last_total)
        value = LARGEST - tl.maximum(tl.load(ranks + token, mask=tied, other=0), 0)
    if LEVEL > 2:
        tied = tied & (value == last_rank)
        value = LARGEST - token
    return tl.where(tied, value, -1)


@triton.jit
def _last_value(
    counts, totals, ranks, vocab_size, last_count, last_total, last_rank, wanted,
    LEVEL: tl.constexpr, TOTALS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the value of the last wanted token, and how many with this value are wanted."""
    low = wanted * 0 + LARGEST
    high = wanted * 0
    for first in range(0, vocab_size, BLOCK):
        value = _tied_values(
            counts, totals, ranks, first, vocab_size, last_count, last_total, last_rank,
            LEVEL, TOTALS, BLOCK,
        )  # fmt: skip
        low = tl.minimum(low, tl.min(tl.where(value < 0, LARGEST, value), 0))
        high = tl.maximum(high, tl.max(value, 0))
    # Fewer than `wanted` values are above `high`, and at least as many are at or above `low`.
    above = wanted * 0
    while low < high:
        middle = high - ((high - low) >> 1)
        hits = wanted * 0
        for first in range(0, vocab_size, BLOCK):
            value = _tied_values(
                counts, totals, ranks, first, vocab_size, last_count, last_total, last_rank,
                LEVEL, TOTALS, BLOCK,
            )  # fmt: skip
            hits += tl.sum((value >= middle).to(tl.int32), 0)
        enough = hits >= wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
        above = tl.where(enough, above, hits)
    return low, wanted - above


@triton.jit
def _last_place(last):
    """Return the place of the last wanted token, of LAST_WORDS."""
    count = (tl.load(last + 2).to(tl.int64) << 32) + tl.load(last + 3)
    return count, (tl.load(last + 4).to(tl.int64) << 32) + tl.load(last + 5)


@triton.jit
def _is_closed(active_ids, slot_stamps, slot, there):
    """Return which slots take no token: those that are pinned without one."""
    token = tl.load(active_ids + slot, mask=there, other=0)
    stamp = tl.load(slot_stamps + slot, mask=there, other=0)
    return there & (token < 0) & (stamp == PINNED)


@triton.jit(do_not_specialize=["capacity", "vocab_size", "lists", "wanted"])
def select_kernel(
    active_ids,  # int32 [G, K]
    slot_stamps,  # int64 [G, K]
    token_slots,  # int32 [G, V]
    text_counts,  # int32 [C, V]
    total_counts,  # int32 [V], when TOTALS
    token_ranks,  # int32 [V]
    group_lists,  # [G]
    newcomers,  # int32 [G, K + 6]: tokens by id; then LAST_WORDS
    capacity,
    vocab_size,
    lists,
    wanted,  # tokens that a group without closed slots shall have, or have pinned
    TOTALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64)
    which = tl.load(group_lists + group).to(tl.int64)
    if (which >= 0) & (which < lists):
        active_ids += group * capacity
        slot_stamps += group * capacity
        token_slots += group * vocab_size
        newcomers += group * (capacity + 6)
        counts = text_counts + which * vocab_size
        is_open = capacity
        for first in range(0, capacity, BLOCK):
            slot = first + tl.arange(0, BLOCK)
            closed = _is_closed(active_ids, slot_stamps, slot, slot < capacity)
            is_open -= tl.sum(closed.to(tl.int32), 0)
        wanted = tl.minimum(wanted, is_open)
        last_count, left = _last_value(
            counts, total_counts, token_ranks, vocab_size, 0, 0, 0, wanted, 0, TOTALS, BLOCK
        )
        last_total, left = _last_value(
            counts, total_counts, token_ranks, vocab_size, last_count, 0, 0, left, 1, TOTALS, BLOCK
        )
        last_rank, left = _last_value(
            counts, total_counts, token_ranks, vocab_size, last_count, last_total, 0, left,
            2, TOTALS, BLOCK,
        )  # fmt: skip
        last_token, left = _last_value(
            counts, total_counts, token_ranks, vocab_size, last_count, last_total, last_rank, left,
            3, TOTALS, BLOCK,
        )  # fmt: skip
        count_of_last = (last_count.to(tl.int64) << 32) + last_total
        rest_of_last = (last_rank.to(tl.int64) << 32) + last_token
        found = wanted * 0
        for first in range(0, tl.where(wanted > 0, vocab_size, 0), BLOCK):
            token = first + tl.arange(0, BLOCK)
            there = token < vocab_size
            count, rest = _places(counts, total_counts, token_ranks, token, there, TOTALS)
            new = there & (_comes_before(count_of_last, rest_of_last, count, rest) == 0)
            slot = tl.load(token_slots + token, mask=new, other=-1)
            may_hold = new & (slot >= 0) & (slot < capacity)
            held = tl.load(active_ids + slot, mask=may_hold, other=-1) == token
            new = new & ((may_hold & held) == 0)
            number = found + tl.cumsum(new.to(tl.int32), 0) - 1
            tl.store(newcomers + number, token, mask=new)
            found += tl.sum(new.to(tl.int32), 0)
        last = newcomers + capacity
        tl.store(last, found)
        tl.store(last + 1, wanted)
        tl.store(last + 2, last_count)
        tl.store(last + 3, last_total)
        tl.store(last + 4, last_rank)
        tl.store(last + 5, last_token)


@triton.jit(do_not_specialize=["capacity", "vocab_size", "lists"])
def keep_kernel(
    active_ids,  # int32 [G, K]
    slot_stamps,  # int64 [G, K]
    token_slots,  # int32 [G, V]
    clock,  # int64 [G]
    text_counts,  # int32 [C, V]
    total_counts,  # int32 [V], when TOTALS
    token_ranks,  # int32 [V]
    group_lists,  # [G]
    newcomers,  # int32 [G, K + 6]
    marks,  # int32 [G, K]: 0; 1: the slot and token_slots agree on its token; 2: kept, or closed
    capacity,
    vocab_size,
    lists,
    TOTALS: tl.constexpr,
    RESET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64)
    which = tl.load(group_lists + group).to(tl.int64)
    if (which >= 0) & (which < lists):
        active_ids += group * capacity
        slot_stamps += group * capacity
        token_slots += group * vocab_size
        marks += group * capacity
        counts = text_counts + which * vocab_size
        last = newcomers + group * (capacity + 6) + capacity
        last_count, last_rest = _last_place(last)
        wantable = tl.where(tl.load(last + 1) > 0, vocab_size, 0)  # any token, or none
        base = tl.load(clock + group)
        lost = base * 0  # tokens that lose their pin
        for first in range(0, capacity, BLOCK):
            slot = first + tl.arange(0, BLOCK)
            there = slot < capacity
            token = tl.load(active_ids + slot, mask=there, other=-1)
            held = there & (token >= 0) & (token < vocab_size)
            held = held & (tl.load(token_slots + token, mask=held, other=-1) == slot)
            count, rest = _places(counts, total_counts, token_ranks, token, held, TOTALS)
            kept = _comes_before(last_count, last_rest, count, rest) == 0
            kept = held & (token < wantable) & kept
            closed = _is_closed(active_ids, slot_stamps, slot, there)
            mark = tl.where(kept | closed, 2, held.to(tl.int32))
            tl.store(marks + slot, mark, mask=there)
            if not RESET:
                kept = kept | closed
                stamp = tl.load(slot_stamps + slot, mask=there, other=0)
                lost += tl.sum((there & (kept == 0) & (stamp == PINNED)).to(tl.int64), 0)
        if not RESET:
            # A thread reads the marks and stamps that it wrote or will write itself.
            older = base * 0
            for first in range(0, capacity, BLOCK):
                slot = first + tl.arange(0, BLOCK)
                there = slot < capacity
                kept = tl.load(marks + slot, mask=there, other=0) == 2
                stamp = tl.load(slot_stamps + slot, mask=there, other=0)
                loses = there & (kept == 0) & (stamp == PINNED)
                number = older + tl.cumsum(loses.to(tl.int64), 0) - 1
                moved = stamp + lost
                # Also if the sum wraps around, no ordinary token gets the stamp of a pinned one.
                moved = tl.where(stamp >= 0, tl.minimum(moved, PINNED - 1), stamp)
                moved = tl.where(loses, number, tl.where(kept, PINNED, moved))
                tl.store(slot_stamps + slot, moved, mask=there)
                older += tl.sum(loses.to(tl.int64), 0)
            # Store the clock last: by then every warp has read the old value.
            tl.store(clock + group, base + lost)


@triton.jit
def _count_at_most(stamps, marks, capacity, limit, BLOCK: tl.constexpr):
    """Return the number of slots that are not kept and whose stamp is at most ``limit``."""
    hits = 0
    for first in range(0, capacity, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        there = slot < capacity
        stamp = tl.load(stamps + slot, mask=there, other=0)
        there = there & (tl.load(marks + slot, mask=there, other=2) < 2)
        hits += tl.sum((there & (stamp <= limit)).to(tl.int32), 0)
    return hits


@triton.jit
def _last_freed(stamps, marks, capacity, wanted, BLOCK: tl.constexpr):
    """Return the smallest stamp that at least ``wanted`` slots carry, or a smaller one.

    Only slots that are not kept count. Return also how many slots carry a smaller one.
    """
    low = wanted.to(tl.int64) * 0 + PINNED
    high = -low - 1
    for first in range(0, capacity, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        there = slot < capacity
        stamp = tl.load(stamps + slot, mask=there, other=0)
        there = there & (tl.load(marks + slot, mask=there, other=2) < 2)
        low = tl.minimum(low, tl.min(tl.where(there, stamp, PINNED), 0))
        high = tl.maximum(high, tl.max(tl.where(there, stamp, -PINNED - 1), 0))
    below = wanted * 0
    while low < high:
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # no sum of any two stamps overflows
        hits = _count_at_most(stamps, marks, capacity, middle, BLOCK)
        enough = hits >= wanted
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
        below = tl.where(enough, below, hits)
    return low, below


@triton.jit(do_not_specialize=["capacity", "vocab_size", "lists", "pinned"])
def place_kernel(
    active_ids,  # int32 [G, K]
    slot_stamps,  # int64 [G, K]
    token_slots,  # int32 [G, V]
    clock,  # int64 [G]
    group_lists,  # [G]
    newcomers,  # int32 [G, K + 6]
    marks,  # int32 [G, K]
    capacity,
    vocab_size,
    lists,
    pinned,
    RESET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64)
    which = tl.load(group_lists + group).to(tl.int64)
    if (which >= 0) & (which < lists):
        active_ids += group * capacity
        slot_stamps += group * capacity
        token_slots += group * vocab_size
        newcomers += group * (capacity + 6)
        marks += group * capacity
        found = tl.load(newcomers + capacity)
        limit = PINNED
        ties = found * 0
        if not RESET:
            limit, ties = _last_freed(slot_stamps, marks, capacity, found, BLOCK)
            ties = found - ties  # slots that carry the limit and are freed, the lowest first
        placed = found * 0
        tied = found * 0
        for first in range(0, capacity, BLOCK):
            slot = first + tl.arange(0, BLOCK)
            there = slot < capacity
            mark = tl.load(marks + slot, mask=there, other=2)
            free = mark < 2
            if not RESET:
                stamp = tl.load(slot_stamps + slot, mask=there, other=0)
                equal = free & (stamp == limit)
                among = tied + tl.cumsum(equal.to(tl.int32), 0)
                free = (free & (stamp < limit)) | (equal & (among <= ties))
                tied += tl.sum(equal.to(tl.int32), 0)
            number = placed + tl.cumsum(free.to(tl.int32), 0) - 1
            taken = free & (number < found)
            token = tl.load(newcomers + number, mask=taken, other=-1)
            gone = tl.load(active_ids + slot, mask=free & (mark == 1), other=-1)
            # The token that leaves is not wanted, so it is no newcomer.
            tl.store(token_slots + gone, -1, mask=free & (mark == 1))
            tl.store(token_slots + token, slot, mask=taken)
            tl.store(active_ids + slot, token, mask=free)
            tl.store(slot_stamps + slot, EMPTY if RESET else PINNED, mask=free)
            placed += tl.sum(free.to(tl.int32), 0)
        if RESET:
            wanted = tl.load(newcomers + capacity + 1)
            tl.store(clock + group, tl.maximum(wanted - pinned, 0).to(tl.int64))


@triton.jit(do_not_specialize=["capacity", "vocab_size", "lists", "pinned"])
def stamp_kernel(
    active_ids,  # int32 [G, K]
    slot_stamps,  # int64 [G, K]
    text_counts,  # int32 [C, V]
    total_counts,  # int32 [V], when TOTALS
    token_ranks,  # int32 [V]
    group_lists,  # [G]
    newcomers,  # int32 [G, K + 6]
    capacity,
    vocab_size,
    lists,
    pinned,
    TOTALS: tl.constexpr,
    STAMPED: tl.constexpr,
    COMPARED: tl.constexpr,
):
    blocks = tl.cdiv(capacity, STAMPED)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    which = tl.load(group_lists + group).to(tl.int64)
    if (which >= 0) & (which < lists):
        active_ids += group * capacity
        slot_stamps += group * capacity
        counts = text_counts + which * vocab_size
        slot = tl.program_id(0) % blocks * STAMPED + tl.arange(0, STAMPED)
        token = tl.load(active_ids + slot, mask=slot < capacity, other=-1)
        there = token >= 0
        count, rest = _places(counts, total_counts, token_ranks, token, there, TOTALS)
        position = tl.zeros_like(token)
        for first in range(0, capacity, COMPARED):
            at = first + tl.arange(0, COMPARED)
            other = tl.load(active_ids + at, mask=at < capacity, other=-1)
            more, last = _places(counts, total_counts, token_ranks, other, other >= 0, TOTALS)
            before = _comes_before(more[None, :], last[None, :], count[:, None], rest[:, None])
            position += tl.sum(before.to(tl.int32), 1)
        wanted = tl.load(newcomers + group * (capacity + 6) + capacity + 1)
        stamp = tl.where(position < pinned, PINNED, (wanted - 1 - position).to(tl.int64))
        tl.store(slot_stamps + slot, stamp, mask=there)


def vocab_refill_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    text_counts: Tensor,
    token_ranks: Tensor,
    group_lists: Tensor,
    *,
    total_counts: Tensor | None = None,
    pinned: int = 0,
    reset: bool = True,
) -> None:
    """Compute :func:`microspec_kernels.vocab_refill_` in Triton, without its checks."""
    num_groups, vocab_size = token_slots.shape
    capacity, lists = active_ids.size(-1), len(text_counts)
    wanted = min(vocab_size, capacity if reset else pinned)
    newcomers = active_ids.new_empty((num_groups, capacity + LAST_WORDS))
    marks = active_ids.new_empty((num_groups, capacity))
    totals = total_counts is not None
    order = (text_counts, total_counts if totals else token_ranks, token_ranks, group_lists)
    state = (active_ids, slot_stamps, token_slots, clock)
    sizes = (capacity, vocab_size, lists)
    options = {"BLOCK": BLOCK, "num_warps": 8}
    with on_device_of(active_ids):
        select_kernel[(num_groups,)](
            active_ids, slot_stamps, token_slots, *order, newcomers, *sizes, wanted,
            TOTALS=totals, BLOCK=BLOCK, num_warps=16,
        )  # fmt: skip
        keep_kernel[(num_groups,)](
            *state, *order, newcomers, marks, *sizes, TOTALS=totals, RESET=reset, **options
        )
        place_kernel[(num_groups,)](
            *state, group_lists, newcomers, marks, *sizes, pinned, RESET=reset, **options
        )
        if reset and capacity:
            stamp_kernel[(num_groups * triton.cdiv(capacity, STAMPED),)](
                active_ids, slot_stamps, *order, newcomers, *sizes, pinned,
                TOTALS=totals, STAMPED=STAMPED, COMPARED=COMPARED, num_warps=4,
            )  # fmt: skip
