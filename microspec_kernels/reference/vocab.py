# SPDX-License-Identifier: Apache-2.0
"""The meaning of vocab_update_, vocab_count_ and vocab_refill_."""

from collections import OrderedDict

import torch
from torch import Tensor

from .._checks import EMPTY_STAMP, PINNED_STAMP
from .indexing import by_group


def vocab_update_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    *,
    token_groups: Tensor | None = None,
) -> None:
    """Run a sequential LRU over the tokens, group by group, and update the state in place.

    A token's stamp is the group's clock before the call plus the token's position in the call. The
    clock then advances by the number of positions, padding included. The n new tokens take n slots:
    those of evicted tokens, and the lowest empty ones. The oldest new token takes the lowest slot.
    """
    ids = by_group(active_ids)
    count = tokens.size(-1)
    for group in range(ids.size(0)):
        if token_groups is not None:
            stream = torch.where(token_groups == group, tokens, -1).tolist()
        else:
            stream = tokens.reshape(ids.size(0), count)[group].tolist()
        _update_group(ids[group], slot_stamps[group], token_slots[group], clock[group], stream)


def _update_group(
    ids: Tensor, stamps: Tensor, slots: Tensor, clock: Tensor, stream: list[int]
) -> None:
    slot_ids: list[int] = ids.tolist()
    slot_stamps: list[int] = stamps.tolist()
    base = int(clock)
    pinned = {t for t, s in zip(slot_ids, slot_stamps, strict=True) if s == PINNED_STAMP}
    before = {t: slot for slot, t in enumerate(slot_ids) if t >= 0}
    room = len(slot_ids) - slot_stamps.count(PINNED_STAMP)
    by_age = sorted((slot_stamps[slot], t) for t, slot in before.items() if t not in pinned)
    recency = OrderedDict((t, stamp) for stamp, t in by_age)
    for position, token in enumerate(stream):
        if token < 0 or token in pinned or room == 0:
            continue
        if token in recency:
            recency.move_to_end(token)
        elif len(recency) == room:
            recency.popitem(last=False)
        recency[token] = base + position

    gone = [t for t in before if t not in recency and t not in pinned]
    newcomers = [t for t in recency if t not in before]
    empty = [slot for slot, t in enumerate(slot_ids) if t < 0 and slot_stamps[slot] < 0]
    # No token is evicted while a slot is empty: if `gone` is not empty, this takes all of `empty`.
    free = sorted(empty[: len(newcomers) - len(gone)] + [before[t] for t in gone])
    for token in gone:
        slots[token] = -1
    for slot, token in zip(free, newcomers, strict=True):
        ids[slot], slots[token] = token, slot
    for token, stamp in recency.items():
        stamps[slots[token]] = stamp
    clock += len(stream)


def vocab_count_(
    text_counts: Tensor,
    seen: Tensor,
    tokens: Tensor,
    *,
    token_requests: Tensor | None = None,
    request_lists: Tensor | None = None,
    total_counts: Tensor | None = None,
) -> None:
    """Count each token once per request, in the request's list and in the total, in place.

    Bit t % 32 of word t // 32 of a request's row of ``seen`` says that token t has been counted.
    """
    num_lists, vocab_size = text_counts.shape
    num_requests, num_words = seen.shape
    count = tokens.size(-1)
    if token_requests is None:
        requests = [r for r in range(num_requests) for _ in range(count)]
    else:
        requests = token_requests.tolist()
    lists = [0] * num_requests if request_lists is None else request_lists.tolist()
    bits = torch.arange(32, device=seen.device)
    was_seen = ((seen[..., None] >> bits) & 1).view(num_requests, -1).bool()
    for token, request in zip(tokens.flatten().tolist(), requests, strict=True):
        if not (0 <= token < vocab_size and 0 <= request < num_requests):
            continue
        if not 0 <= lists[request] < num_lists or was_seen[request, token]:
            continue
        was_seen[request, token] = True
        text_counts[lists[request], token] += 1
        if total_counts is not None:
            total_counts[token] += 1
    words = (was_seen.view(num_requests, num_words, 32).long() << bits).sum(2)
    seen.copy_(words.where(words < 2**31, words - 2**32))


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
    """Fill groups with the first tokens of their lists, in place.

    Tokens are in the order of (count in the list, the largest first; total count, the largest
    first; rank, the smallest first; id). Negative counts and ranks count as 0. A token that stays
    keeps its slot. New tokens take the free slots, both in ascending order. A slot that is pinned
    without a token is closed: it stays as it is.
    """
    ids = by_group(active_ids)
    totals = torch.zeros_like(token_ranks) if total_counts is None else total_counts
    for group, which in enumerate(group_lists.tolist()):
        if not 0 <= which < len(text_counts):
            continue
        # Stable sorts, least significant key first.
        order = token_ranks.clamp(min=0).argsort(stable=True)
        for counts in (totals, text_counts[which]):
            order = order[counts.clamp(min=0)[order].argsort(descending=True, stable=True)]
        closed = (ids[group] < 0) & (slot_stamps[group] == PINNED_STAMP)
        open_slots = ids.size(1) - int(closed.sum())
        wanted = order[: open_slots if reset else min(pinned, open_slots)].tolist()
        state = ids[group], slot_stamps[group], token_slots[group], clock[group]
        _refill_group(*state, wanted, pinned, reset)


def _refill_group(
    ids: Tensor,
    stamps: Tensor,
    slots: Tensor,
    clock: Tensor,
    wanted: list[int],
    pinned: int,
    reset: bool,
) -> None:
    held = {t: s for s, t in enumerate(ids.tolist()) if 0 <= t < len(slots) and slots[t] == s}
    kept = {held[token] for token in wanted if token in held}
    kept |= {s for s, t in enumerate(ids.tolist()) if t < 0 and stamps[s] == PINNED_STAMP}
    others = [slot for slot in range(len(ids)) if slot not in kept]
    newcomers = sorted(token for token in wanted if token not in held)
    if not reset:
        # Tokens that lose their pin become the oldest, in the order of their slots.
        unpinned = [slot for slot in others if stamps[slot] == PINNED_STAMP]
        stamps[(stamps >= 0) & (stamps != PINNED_STAMP)] += len(unpinned)
        for stamp, slot in enumerate(unpinned):
            stamps[slot] = stamp
        clock += len(unpinned)
        others = sorted(others, key=lambda slot: (int(stamps[slot]), slot))[: len(newcomers)]
    for slot in others:
        slots[[token for token, held_slot in held.items() if held_slot == slot]] = -1
        ids[slot], stamps[slot] = -1, EMPTY_STAMP
    for slot, token in zip(sorted(others), newcomers, strict=False):
        ids[slot], slots[token] = token, slot
    for position, token in enumerate(wanted):
        stays_on_top = not reset or position < pinned
        stamps[slots[token]] = PINNED_STAMP if stays_on_top else len(wanted) - 1 - position
    if reset:
        clock.fill_(max(len(wanted) - pinned, 0))
