# SPDX-License-Identifier: Apache-2.0
"""The function vocab_observe_."""

import torch
from torch import Tensor

from .errors import reraise


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
    """Take a step's tokens: judge and count those that the target wrote, and update with all.

    The op does in turn what three calls would: it counts which tokens are active now, then
    :func:`vocab_count_` of them, then :func:`vocab_update_` of candidates and tokens. On a GPU it
    is two kernels.

    Args:
        active_ids, slot_stamps, token_slots, clock: the vocabulary, as :func:`vocab_update_` takes
            it.
        tokens: int32 or int64 [N], or [B, n] with a row for each text: what the target wrote,
            oldest first; -1 is padding.
        lengths: int32 or int64 [B], how many of each row of tokens are valid. What follows them may
            be anything.
        candidates: int32 or int64 of any shape, M tokens that also become active, such as the
            target's likeliest; older than ``tokens``. They are neither judged nor counted.
        token_rows: int32 [T], each token's id in the vocabulary, -1 for none, where the draft has
            another vocabulary than the target. Tokens and candidates are then in [-1, T).
        token_groups: int32 or int64 [M + N], the group of each candidate and then of each token.
            Required if G > 1.
        token_requests: int32 or int64 [M + N], the request of each. Default: the number of its
            group if R = G, else 0. A token of a request outside [0, R) is neither judged nor
            counted.
        tally: int32 [n], the data of a :class:`~.tally.Tally`, to which the op adds. Without it
            nothing is judged or counted.
        num_lists: C, the tally's number of lists. With 0 there are only verdicts.

    Raises:
        ValueError, TypeError, IndexError: as :func:`sparse_head`. The op then writes nothing.
    """
    try:
        torch.ops.microspec.vocab_observe_(
            active_ids,
            slot_stamps,
            token_slots,
            clock,
            tokens,
            lengths=lengths,
            candidates=candidates,
            token_rows=token_rows,
            token_groups=token_groups,
            token_requests=token_requests,
            tally=tally,
            num_lists=num_lists,
        )
    except RuntimeError as error:
        reraise(error)
