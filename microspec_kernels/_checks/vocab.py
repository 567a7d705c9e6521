# SPDX-License-Identifier: Apache-2.0
"""Checks of vocab_update_, vocab_count_ and vocab_refill_."""

from torch import Tensor

from ..tally import num_words
from .checker import Checker, groups_and_capacity, numbers

PINNED_STAMP = 2**63 - 1
EMPTY_STAMP = -1


def vocab_state(
    check: Checker, active_ids: Tensor, slot_stamps: Tensor, token_slots: Tensor, clock: Tensor
) -> tuple[int, int, int]:
    """Check a vocabulary's state. Return G, K and V."""
    num_groups, capacity = groups_and_capacity(check, active_ids)
    check.value(token_slots.dim() == 2, "token_slots", "shape [G, V]", list(token_slots.shape))
    vocab_size = token_slots.size(1)
    check.int32(active_ids, "active_ids")
    check.int64(slot_stamps, "slot_stamps")
    check.int32(token_slots, "token_slots")
    check.int64(clock, "clock")
    check.shape(slot_stamps, "slot_stamps", (num_groups, capacity))
    check.shape(token_slots, "token_slots", (num_groups, vocab_size))
    check.shape(clock, "clock", (num_groups,))
    state = {
        "active_ids": active_ids,
        "slot_stamps": slot_stamps,
        "token_slots": token_slots,
        "clock": clock,
    }
    for name, tensor in state.items():
        check.contiguous(tensor, name)
        check.on_device(tensor, name)
    return num_groups, capacity, vocab_size


def _tokens(
    check: Checker, tokens: Tensor, owners: str, rows: int, token_owners: Tensor | None
) -> None:
    """Check tokens [rows, N], or [N] with token_owners [N]; owners are "groups" or "requests"."""
    letter, argument = owners[0].upper(), f"token_{owners}"
    check.integer(tokens, "tokens")
    got = list(tokens.shape)
    if token_owners is not None or tokens.dim() == 1:
        check.value(tokens.dim() == 1, "tokens", f"shape [N] beside {argument}", got)
        expected = f"shape [{letter}, N], or [N] with {argument}, as {letter} > 1"
        check.value(token_owners is not None or rows == 1, "tokens", expected, got)
    else:
        fits = tokens.dim() == 2 and tokens.size(0) == rows
        check.value(fits, "tokens", f"shape [{rows}, N]", got)
    check.contiguous(tokens, "tokens")
    check.on_device(tokens, "tokens")
    if token_owners is not None:
        numbers(check, token_owners, argument, tokens.size(-1))


def vocab(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    token_groups: Tensor | None,
) -> Checker:
    """Check the arguments of vocab_update_, except the tokens' values."""
    check = Checker("vocab_update_", active_ids.device)
    num_groups, _, _ = vocab_state(check, active_ids, slot_stamps, token_slots, clock)
    _tokens(check, tokens, "groups", num_groups, token_groups)
    return check


def _counts(check: Checker, text_counts: Tensor, total_counts: Tensor | None) -> None:
    """Check text_counts int32 [C, V] and total_counts int32 [V]."""
    fits = text_counts.dim() == 2 and text_counts.size(0) > 0
    check.value(fits, "text_counts", "shape [C, V], C >= 1", list(text_counts.shape))
    check.int32(text_counts, "text_counts")
    check.contiguous(text_counts, "text_counts")
    check.on_device(text_counts, "text_counts")
    if total_counts is not None:
        check.int32(total_counts, "total_counts")
        check.shape(total_counts, "total_counts", (text_counts.size(1),))
        check.contiguous(total_counts, "total_counts")
        check.on_device(total_counts, "total_counts")


def _requests(
    check: Checker, text_counts: Tensor, seen: Tensor, request_lists: Tensor | None
) -> None:
    """Check seen int32 [R, ceil(V / 32)], and request_lists [R] if there are several lists."""
    words = num_words(text_counts.size(1))
    fits = seen.dim() == 2 and seen.size(0) > 0 and seen.size(1) == words
    check.value(fits, "seen", f"shape [R, {words}], R >= 1", list(seen.shape))
    check.int32(seen, "seen")
    check.contiguous(seen, "seen")
    check.on_device(seen, "seen")
    given = request_lists is not None or text_counts.size(0) == 1
    check.value(given, "request_lists", "the list of each request, as C > 1", None)
    if request_lists is not None:
        numbers(check, request_lists, "request_lists", seen.size(0))


def vocab_count(
    text_counts: Tensor,
    seen: Tensor,
    tokens: Tensor,
    token_requests: Tensor | None,
    request_lists: Tensor | None,
    total_counts: Tensor | None,
) -> Checker:
    """Check the arguments of vocab_count_."""
    check = Checker("vocab_count_", text_counts.device)
    _counts(check, text_counts, total_counts)
    _requests(check, text_counts, seen, request_lists)
    _tokens(check, tokens, "requests", seen.size(0), token_requests)
    return check


def vocab_refill(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    text_counts: Tensor,
    token_ranks: Tensor,
    group_lists: Tensor,
    total_counts: Tensor | None,
    pinned: int,
) -> Checker:
    """Check the arguments of vocab_refill_, except the lists' values."""
    check = Checker("vocab_refill_", active_ids.device)
    num_groups, capacity, vocab_size = vocab_state(
        check, active_ids, slot_stamps, token_slots, clock
    )
    _counts(check, text_counts, total_counts)
    check.shape(text_counts, "text_counts", (text_counts.size(0), vocab_size))
    check.int32(token_ranks, "token_ranks")
    check.shape(token_ranks, "token_ranks", (vocab_size,))
    check.contiguous(token_ranks, "token_ranks")
    check.on_device(token_ranks, "token_ranks")
    numbers(check, group_lists, "group_lists", num_groups)
    check.value(0 <= pinned <= capacity, "pinned", f"0 to K = {capacity}", pinned)
    return check
