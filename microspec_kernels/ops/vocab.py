# SPDX-License-Identifier: Apache-2.0
"""The functions vocab_update_, vocab_count_ and vocab_refill_."""

import torch
from torch import Tensor

from .errors import reraise


def vocab_update_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    *,
    token_groups: Tensor | None = None,
) -> None:
    """Add tokens to the active vocabulary in place, and evict the least recently used ones.

    The set and its recency order are exactly those of a sequential LRU over the tokens. A token
    that stays keeps its slot. New tokens, oldest first, take the free slots in ascending order.
    A slot with stamp 2^63 - 1 is pinned: the op never evicts its token.

    Args:
        active_ids: int32 [K] or [G, K]; -1 marks an empty slot.
        slot_stamps: int64 [G, K], time of last use; -1 at an empty slot.
        token_slots: int32 [G, V], the slot of each token, or -1.
        clock: int64 [G], positions seen so far, padding included.
        tokens: int32 or int64 [G, N], or [N] if G = 1 or with ``token_groups``; oldest first;
            -1 is padding. N may exceed K.
        token_groups: int32 or int64 [N], the group of each token of a ragged batch; -1 ignores the
            token.

    Raises:
        ValueError, TypeError, IndexError: as :func:`sparse_head`. The op then writes nothing.
    """
    try:
        torch.ops.microspec.vocab_update_(
            active_ids, slot_stamps, token_slots, clock, tokens, token_groups=token_groups
        )
    except RuntimeError as error:
        reraise(error)


def vocab_count_(
    text_counts: Tensor,
    seen: Tensor,
    tokens: Tensor,
    *,
    token_requests: Tensor | None = None,
    request_lists: Tensor | None = None,
    total_counts: Tensor | None = None,
) -> None:
    """Count in how many texts each token stands, in place.

    A token counts once per text: the op sets its bit in ``seen``, and counts it if the bit was not
    set. Clear a request's row of ``seen`` when its text begins. The op ignores tokens outside
    [0, V), and tokens of a request or a list that does not exist.

    Args:
        text_counts: int32 [C, V], for each list the number of texts with each token.
        seen: int32 [R, ceil(V / 32)], the tokens that each request's text has shown: bit t % 32 of
            word t // 32 is that of token t.
        tokens: int32 or int64 [R, N], or [N] if R = 1 or with ``token_requests``, in any order.
        token_requests: int32 or int64 [N], the request of each token.
        request_lists: int32 or int64 [R], the list of each request; -1 ignores the request's
            tokens. Required if C > 1.
        total_counts: int32 [V], counts of all lists together.

    Raises:
        ValueError, TypeError: as :func:`sparse_head`. The op then writes nothing.
    """
    try:
        torch.ops.microspec.vocab_count_(
            text_counts,
            seen,
            tokens,
            token_requests=token_requests,
            request_lists=request_lists,
            total_counts=total_counts,
        )
    except RuntimeError as error:
        reraise(error)


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
    """Fill active vocabularies with the tokens that stood in the most texts, in place.

    The order of tokens is: the count in the group's list, the largest first; then the total count,
    the largest first; then the rank, the smallest first; then the id. Negative counts and ranks
    count as 0. A token that stays keeps its slot. New tokens take the free slots, both in
    ascending order.

    With ``reset``, the group becomes the first K tokens: ``pinned`` of them pinned, the others with
    stamps that let the last of the order be evicted first. Without it, only the pinned tokens
    change: the first ``pinned`` tokens become pinned, those not active take the slots of the least
    recently used, and tokens that lose their pin become the least recently used.

    An empty slot with a pinned one's stamp is closed and stays as it is: K means the others.

    Args:
        active_ids: int32 [K] or [G, K]; -1 marks an empty slot.
        slot_stamps: int64 [G, K], time of last use.
        token_slots: int32 [G, V], the slot of each token, or -1.
        clock: int64 [G].
        text_counts: int32 [C, V], for each list the number of texts with each token.
        token_ranks: int32 [V], the order of tokens with equal counts, the smallest first. The op is
            fastest if the ranks are a permutation of 0 to V - 1.
        group_lists: int32 or int64 [G], the list of each group; -1 leaves the group as it is.
        total_counts: int32 [V], counts of all lists together.
        pinned: number of pinned tokens, 0 to K.
        reset: whether the slots that are not pinned begin anew too.

    Raises:
        ValueError, TypeError, IndexError: as :func:`sparse_head`. The op then writes nothing.
    """
    try:
        torch.ops.microspec.vocab_refill_(
            active_ids,
            slot_stamps,
            token_slots,
            clock,
            text_counts,
            token_ranks,
            group_lists,
            total_counts=total_counts,
            pinned=pinned,
            reset=reset,
        )
    except RuntimeError as error:
        reraise(error)
