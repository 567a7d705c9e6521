# SPDX-License-Identifier: Apache-2.0
"""The meaning of vocab_observe_, which is made of vocab_count_ and vocab_update_."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..tally import Tally
from .indexing import by_group
from .vocab import vocab_count_, vocab_update_


def valid_tokens(tokens: Tensor, lengths: Tensor | None) -> Tensor:
    """Return tokens [B, n] with -1 after the first lengths [B] of each row."""
    if lengths is None:
        return tokens
    columns = torch.arange(tokens.size(1), device=tokens.device)
    return tokens.where(columns < lengths[:, None], -1)


def step_ids(
    tokens: Tensor,
    lengths: Tensor | None,
    candidates: Tensor | None,
    token_rows: Tensor | None,
    vocab_size: int,
) -> Tensor:
    """Return the ids in the vocabulary of a step's candidates, and after them of its tokens."""
    ids = valid_tokens(tokens, lengths).flatten()
    if candidates is not None:
        ids = torch.cat((candidates.flatten().long(), ids.long()))
    if token_rows is not None:
        inside = (ids >= 0) & (ids < len(token_rows))
        ids = token_rows[ids.where(inside, 0).long()].where(inside, -1)
    return ids.where((ids >= 0) & (ids < vocab_size), -1)


def judge(
    active_ids: Tensor, token_slots: Tensor, ids: Tensor, groups: Tensor, requests: Tensor,
    verdicts: Tensor,
) -> None:  # fmt: skip
    """Add to verdicts [2, R] the ids that are active, and those that are not."""
    of_group = by_group(active_ids)
    inside = (ids >= 0) & (groups >= 0) & (groups < len(of_group))
    inside &= (requests >= 0) & (requests < verdicts.size(1))
    id_, group, request = (t.where(inside, 0).long() for t in (ids, groups, requests))
    active = torch.zeros_like(inside)
    if of_group.size(1) and token_slots.size(1):
        slot = token_slots[group, id_].long()
        there = (slot >= 0) & (slot < of_group.size(1))
        active = there & (of_group[group, slot.where(there, 0)] == id_)
    verdicts.index_add_(1, request, torch.stack((active & inside, ~active & inside)).long())


def observing(count: Callable[..., None], update: Callable[..., None]) -> Callable[..., None]:
    """Make vocab_observe_ of vocab_count_ and vocab_update_."""

    def vocab_observe_(
        active_ids: Tensor,
        slot_stamps: Tensor,
        token_slots: Tensor,
        clock: Tensor,
        tokens: Tensor,
        *,
        lengths: Tensor | None = None,
        candidates: Tensor | None = None,
        token_rows: Tensor | None = None,
        token_groups: Tensor | None = None,
        token_requests: Tensor | None = None,
        tally: Tensor | None = None,
        num_lists: int = 0,
    ) -> None:
        """Judge and count the tokens, then update with the candidates and the tokens, in place."""
        num_groups, vocab_size = token_slots.shape
        ids = step_ids(tokens, lengths, candidates, token_rows, vocab_size)
        if tally is not None:
            parts = Tally.over(tally, vocab_size, num_lists)
            zeros = torch.zeros_like(ids)
            groups = zeros if token_groups is None else token_groups
            requests = token_requests
            if requests is None:
                requests = groups if parts.verdicts.size(1) == num_groups else zeros
            owned = slice(len(ids) - tokens.numel(), None)
            written, groups, requests = (t[owned] for t in (ids, groups, requests))
            judge(active_ids, token_slots, written, groups, requests, parts.verdicts)
            if num_lists:
                count(
                    parts.text_counts,
                    parts.seen,
                    written,
                    token_requests=requests,
                    request_lists=parts.request_lists,
                    total_counts=parts.total_counts,
                )
        update(active_ids, slot_stamps, token_slots, clock, ids, token_groups=token_groups)

    return vocab_observe_


vocab_observe_ = observing(vocab_count_, vocab_update_)
