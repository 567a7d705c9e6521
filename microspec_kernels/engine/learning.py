# SPDX-License-Identifier: Apache-2.0
"""What an `EngineHead` learns from the texts of its requests."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from microspec_kernels.policy import (
    LearnedFile,
    LearnedLists,
    LearnedVocab,
    StepCosts,
    prior_of_tokenizer,
    tokenizer_fingerprint,
)
from microspec_kernels.vocab import ActiveVocab

from .settings import Settings
from .shard import Shard
from .token_map import TokenMap


def prior_rows(token_map: TokenMap, prior: Tensor) -> Tensor:
    """Return all usable rows of the draft's LM head in the order of a prior.

    Args:
        token_map: the map from tokens to rows.
        prior: the target's token ids, the most frequent first; others follow by id.

    Returns:
        int64 [n] on the device. Rows of no token, whose values are broken, are left out.
    """
    rows = token_map.to_rows(prior)
    rows = rows[rows >= 0]
    others = token_map.to_rows(torch.arange(token_map.target_vocab_size, device=rows.device))
    return torch.cat((rows, others[(others >= 0) & ~torch.isin(others, rows)])).long()


class Learning:
    """Learned lists of rows of the draft's LM head, the vocabulary they fill, and their file.

    With ranks, the first one's file and counts are those of all: the constructor is a collective.
    All ranks must then begin and count the same tokens.

    Args:
        vocab: the vocabulary of rows.
        settings: see :class:`Settings`.
        num_requests: number of requests that run at a time. If it is the vocabulary's number of
            groups, each request has its own group; else all share the only group.
        rows: see :func:`prior_rows`.
        tokens: a fingerprint of the tokens that the rows stand for.
        shard: this rank's part of the LM head.
        writes: whether this process may write the file.
        costs: see :class:`LearnedVocab`.

    Raises:
        OSError, ValueError, ImportError: as :class:`LearnedFile`.
    """

    def __init__(
        self,
        vocab: ActiveVocab,
        settings: Settings,
        *,
        num_requests: int,
        rows: Tensor,
        tokens: str,
        shard: Shard | None,
        writes: bool,
        costs: StepCosts | None,
    ) -> None:
        shared = num_requests > vocab.num_groups
        self.lists = LearnedLists(
            vocab.vocab_size,
            # A shared vocabulary's floor is filled from the sum of all lists.
            num_lists=1 if shared else settings.num_lists,
            num_requests=num_requests,
            prior=rows,
            device=vocab.device,
        )
        group = None if shard is None else shard.process_group
        first = group is None or torch.distributed.get_rank(group) == 0
        self._file: LearnedFile | None = None
        if settings.learned_file is not None and first:
            self._file = LearnedFile(
                self.lists, settings.learned_file, tokenizer=tokens, writes=writes
            )
        state = self.lists.state_dict()
        if group is not None:
            for tensor in state.values():
                torch.distributed.broadcast(tensor, group=group, group_src=0)
            self.lists.load_state_dict(state)
        self._start = {name: tensor.cpu() for name, tensor in state.items()}
        self.vocab = LearnedVocab(vocab, self.lists, costs)

    def begin(self, request: int, prompt: Tensor) -> Tensor:
        """Begin a request's text, and fill its vocabulary or bring the floor up to date.

        Args:
            request: the request's number.
            prompt: int32 or int64 [n] on the device, the rows of the prompt's tokens.

        Returns:
            The rows of the prompt that may enter the vocabulary.
        """
        self.vocab.begin(request, prompt)
        if self._file is not None:
            self._file.poll()
        return self.vocab.of_prompt(prompt)

    def running(self, num_requests: int) -> None:
        """Take the number of requests in a step, on which the best K depends."""
        if self.vocab.auto is not None:
            self.vocab.auto.running(num_requests)

    def needed(self, prompt: Tensor) -> Tensor:
        """Return the part of a prompt that :meth:`begin` reads: all if it chooses a list."""
        return prompt if self.lists.num_lists > 1 else self.vocab.of_prompt(prompt)

    def reset(self) -> None:
        """Forget what was learned since the constructor. Waits for the device."""
        self.lists.load_state_dict(self._start)
        self.vocab.refill()
        if self.vocab.auto is not None:
            self.vocab.auto.reset()


def tokens_of(
    settings: Settings, token_map: TokenMap, prior: Tensor | None, tokenizer: Any
) -> tuple[Tensor, str]:
    """Return the prior of a head, and a fingerprint of its tokens.

    Args:
        prior: the target's token ids, the most frequent first; unused if nothing is learned.
        tokenizer: the target's tokenizer; its order is the prior if there is no other.

    Raises:
        OSError, ValueError: as :meth:`Settings.read_frequent_tokens`.
        TypeError: as :func:`prior_of_tokenizer`.
    """
    if not settings.learn:
        prior = tokenizer = None
    fingerprint = "" if tokenizer is None else tokenizer_fingerprint(tokenizer)
    if settings.frequent_tokens_file is not None:
        prior = settings.read_frequent_tokens(token_map.target_vocab_size)
    elif prior is None:
        prior = torch.empty(0, dtype=torch.int64, device="cpu")
        if tokenizer is not None:
            prior = prior_of_tokenizer(tokenizer)
    if token_map.row_tokens is not None:
        values = token_map.row_tokens.cpu().numpy().tobytes()
        fingerprint += ", rows " + hashlib.sha256(values).hexdigest()
    return prior, fingerprint
