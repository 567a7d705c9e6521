# SPDX-License-Identifier: Apache-2.0
"""Learn from a batch's texts which tokens the vocabulary of its sparse head begins with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microspec_kernels._token_ids import token_ids
from microspec_kernels.policy import NUM_LISTS, LearnedLists, LearnedVocab

from .checks import fitted
from .graphs import to_device
from .heads import Sparse
from .models.draft import ModelDraft
from .models.lm_head import LMHead
from .models.target import CausalModel


def learned_lists(
    target: Any,
    draft: Any,
    frequent_tokens: Tensor | Sequence[int] = (),
    *,
    num_lists: int = NUM_LISTS,
) -> LearnedLists:
    """Make lists for the option `learn` of `generate` and `Batch`, which outlast one call.

    target, draft: see `Batch`.
    frequent_tokens: integers [S], distinct token ids, the most frequent first. They lead where
        nothing has been counted.
    num_lists: number of lists.

    Returns empty lists over the rows of the draft's LM head.
    """
    target = target if isinstance(target, CausalModel) else CausalModel(target)
    draft = fitted(draft if hasattr(draft, "extend") else ModelDraft(draft), target)
    return lists_of(draft.lm_head, frequent_tokens, num_lists)


def lists_of(
    lm_head: LMHead, frequent_tokens: Tensor | Sequence[int], num_lists: int = NUM_LISTS
) -> LearnedLists:
    """Make lists over the rows of an LM head; see `learned_lists`."""
    lm_head, device = lm_head.sound(), lm_head.weight.device
    where = "generate: frequent_tokens"
    tokens = token_ids(where, frequent_tokens, lm_head.vocab_size, device=device)
    prior = lm_head.to_rows(lm_head.with_rows(tokens))
    if len(lm_head.rows) < len(lm_head.weight):
        # Rows without a token, such as broken ones, come last: no vocabulary is filled with them.
        others = torch.isin(lm_head.rows, prior, invert=True)
        prior = torch.cat((prior, lm_head.rows[others]))
    return LearnedLists(len(lm_head.weight), num_lists=num_lists, prior=prior, device=device)


class Learning:
    """The link from a batch's texts to learned lists over the rows of its head's LM head.

    If texts run together in one vocabulary, it is a `LearnedVocab` that they share.

    Raises ValueError: lists of another vocabulary, or on another device, or whose order puts rows
    without a token before others.
    """

    def __init__(self, head: Sparse, lists: LearnedLists) -> None:
        self._to_rows = head.lm_head.to_rows
        device = lists.text_counts.device
        if device != head.vocab.device:
            expected = f"lists on {head.vocab.device}"
            raise ValueError(f"generate: learn: expected {expected}, got them on {device}")
        if len(rows := head.lm_head.rows) < len(lists.token_ranks):
            last = int(lists.token_ranks[rows].max()) if len(rows) else -1
            if last >= len(rows):
                expected = (
                    "the lists of `learned_lists`, in whose order rows without a token are last"
                )
                raise ValueError(f"generate: learn: expected {expected}, got one at {last}")
        lists.reserve(head.num_groups)
        self._learned = LearnedVocab(head.vocab, lists)

    def begin(self, request: int, prompt: Tensor) -> None:
        """Begin a request's text with a prompt int64 [P]: fill its vocabulary."""
        num_requests = self._learned.lists.num_requests
        if request >= num_requests:
            self._learned.reserve(max(request + 1, 2 * num_requests))
        self._learned.begin(request, self._to_rows(prompt))

    def of_prompt(self, tokens: Tensor) -> Tensor:
        """Return which of a prompt's tokens int64 [n] enter; see `LearnedVocab.of_prompt`."""
        return self._learned.of_prompt(tokens)

    def end(self, request: int, tokens: Sequence[int]) -> None:
        """Count the whole text that the target wrote for a request. Nothing waits."""
        lists = self._learned.lists
        rows = self._to_rows(to_device(tokens, lists.text_counts.device))
        lists.count(rows, token_requests=torch.full_like(rows, request))
