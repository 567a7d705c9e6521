# SPDX-License-Identifier: Apache-2.0
"""Three heads that rank the draft's next tokens: over all of V, a fixed part, or an active part."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor

from microspec_kernels._token_ids import token_ids
from microspec_kernels.head import SparseHead
from microspec_kernels.policy import Policy
from microspec_kernels.vocab import ActiveVocab

from .models.lm_head import LMHead
from .stats import Clock

HeadName = Literal["dense", "static", "sparse"]


class Head(Protocol):
    """The ranking of a draft's next tokens, for the texts of a batch.

    `follows`: whether the head learns from the target's passes; if not, the loop does not gather
        tokens for it.
    `num_groups`: number of vocabularies; with 1, all texts share one.
    """

    follows: bool
    num_groups: int

    def topk(self, hidden: Tensor, k: int, row_groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best tokens after features [M, D].

        `row_groups` int64 [M]: each row's vocabulary.

        Returns logits fp32 [M, <= k], falling, token ids int64 of the same shape, and the
        logsumexp fp32 [M] of all tokens that this head knows, as `sparse_head` does. If a row has
        fewer than k tokens, the result is narrower or the rest is (-inf, -1). Its shape depends on
        the shape of the arguments only.
        """
        ...

    def logits(self, hidden: Tensor, row_groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [M, c] of the tokens that the head knows, and their ids int64 [M, c].

        The arguments are features [M, D] and `row_groups` as for `topk`. An entry without a token
        is (-inf, -1).
        """
        ...

    def observe(self, tokens: Tensor, token_groups: Tensor) -> None:
        """Learn tokens int64 [N], each in its group int64 [N], newest last; -1 is ignored."""
        ...

    def wait(self) -> None:
        """Let the current stream wait for what `observe` does on other streams."""
        return

    def contains(self, tokens: Tensor, token_groups: Tensor) -> Tensor:
        """Return which tokens int64 [N] it can propose now in their groups int64 [N]: bool [N]."""
        ...

    def active(self) -> Tensor:
        """Return how many tokens the head can propose now in each group, int [num_groups]."""
        ...

    def reset(self, group: int) -> None:
        """Forget what a group has learned, for a new text."""
        ...


class Dense(Head):
    """A ranking over all rows of the LM head except broken ones (see `LMHead.sound`)."""

    follows = False
    num_groups = 1

    def __init__(self, lm_head: LMHead) -> None:
        self.lm_head = lm_head.sound().prepared()

    def topk(self, hidden: Tensor, k: int, row_groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, tokens = self.logits(hidden, row_groups)
        logits = logits.float()
        best = logits.topk(min(k, logits.shape[-1]))
        return best.values, tokens.gather(1, best.indices), logits.logsumexp(-1)

    def logits(self, hidden: Tensor, row_groups: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.lm_head.logits(hidden)
        return logits, self.lm_head.ids.expand_as(logits)

    def observe(self, tokens: Tensor, token_groups: Tensor) -> None:
        """Do nothing: the tokens are fixed."""

    def contains(self, tokens: Tensor, token_groups: Tensor) -> Tensor:
        return self.lm_head.to_rows(tokens) >= 0

    def active(self) -> Tensor:
        return (self.lm_head.ids >= 0).sum()[None]

    def reset(self, group: int) -> None:
        """Do nothing: the tokens are fixed."""


class Static(Dense):
    """A ranking over the rows of `ids` int64 [S] only.

    FR-Spec (arXiv 2502.14856) ranks over the most frequent tokens in this way. Ids without a row
    are skipped.
    """

    def __init__(self, lm_head: LMHead, ids: Tensor) -> None:
        lm_head = lm_head.sound()
        super().__init__(lm_head.only(lm_head.with_rows(ids)))


class Sparse(Head):
    """A ranking over an active vocabulary that follows the text and the target (arXiv 2605.26444).

    `vocab` is an `ActiveVocab` over the rows of the LM head. Tokens without a row are ignored.
    `mode` and `slab_dtype` are those of `SparseHead`.
    """

    follows = True
    clock: Clock | None = None  # measures the slab's copies alone

    def __init__(
        self,
        lm_head: LMHead,
        vocab: ActiveVocab,
        mode: Literal["indexed", "packed"] = "indexed",
        slab_dtype: torch.dtype | Literal["int4"] | None = None,
    ) -> None:
        self.lm_head = lm_head = lm_head.sound().prepared()
        self.vocab = vocab
        self.num_groups = vocab.num_groups
        self.head = SparseHead(
            lm_head.weight,
            vocab,
            mode=mode,
            slab_dtype=slab_dtype,
            bias=lm_head.bias,
            logit_scale=lm_head.scale,
            softcap=lm_head.softcap,
        )

    def topk(self, hidden: Tensor, k: int, row_groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, rows, logsumexp = self.head(hidden, k, self._groups(row_groups))
        return logits, self.lm_head.to_tokens(rows), logsumexp

    def logits(self, hidden: Tensor, row_groups: Tensor) -> tuple[Tensor, Tensor]:
        logits, rows = self.head.logits(hidden, self._groups(row_groups))
        return logits, self.lm_head.to_tokens(rows)

    def observe(self, tokens: Tensor, token_groups: Tensor) -> None:
        rows, slab = self.lm_head.to_rows(tokens), self.head.slab
        self.vocab.update(rows, token_groups=self._groups(token_groups))
        if slab is None:
            return
        with nullcontext() if self.clock is None else self.clock("gather", slab.stream):
            slab.refresh()

    def wait(self) -> None:
        if self.head.slab is not None:
            self.head.slab.wait()

    def contains(self, tokens: Tensor, token_groups: Tensor) -> Tensor:
        groups = self._groups(token_groups)
        return self.vocab.contains(self.lm_head.to_rows(tokens), token_groups=groups)

    def _groups(self, groups: Tensor) -> Tensor | None:
        """Return groups as the ops take them: none for a single vocabulary."""
        return groups.contiguous() if self.num_groups > 1 else None

    def active(self) -> Tensor:
        return self.vocab.size

    def reset(self, group: int) -> None:
        self.vocab.reset([group])


def make_head(
    name: HeadName,
    lm_head: LMHead,
    capacity: int,
    frequent_tokens: Tensor | Sequence[int] | None,
    policy: Policy,
    mode: Literal["indexed", "packed"],
    num_groups: int = 1,
) -> Head:
    """Make the head called `name`.

    capacity, mode, num_groups: options of the sparse head. `policy` gives its pinned and
        frequent tokens.
    frequent_tokens: the static head takes the first `capacity` ids of it. Both heads skip tokens
        that the LM head has no row for.

    Raises ValueError: an unknown name, no `frequent_tokens` for the static head, or one without any
    token of the LM head.
    """
    lm_head = lm_head.sound()
    if name == "dense":
        return Dense(lm_head)
    device = lm_head.weight.device
    capacity = min(capacity, max(1, len(lm_head.rows)))
    if name == "static":
        if frequent_tokens is None:
            raise ValueError(
                "generate: frequent_tokens: head='static' takes token ids, the most frequent "
                "first, got None"
            )
        ids = token_ids(
            "generate: frequent_tokens", frequent_tokens, lm_head.vocab_size, device=device
        )
        with_rows = lm_head.with_rows(ids)
        if len(with_rows) == 0:
            raise ValueError(
                "generate: frequent_tokens: expected tokens that the draft's LM head has rows for, "
                f"got none among {len(ids)}"
            )
        return Static(lm_head, with_rows[:capacity])
    if name != "sparse":
        raise ValueError(f"generate: head: expected 'dense', 'static' or 'sparse', got {name!r}")
    pinned, frequent_tokens = (
        lm_head.to_rows(
            lm_head.with_rows(token_ids(f"Policy: {name}", ids, lm_head.vocab_size, device=device))
        )
        for name, ids in (("pinned", policy.pinned), ("frequent_tokens", policy.frequent_tokens))
    )
    vocab = ActiveVocab(
        len(lm_head.weight),
        capacity,
        num_groups=num_groups,
        pinned=pinned,
        frequent_tokens=frequent_tokens,
        device=device,
    )
    return Sparse(lm_head, vocab, mode)
