# SPDX-License-Identifier: Apache-2.0
"""Define a vocabulary policy: sources of tokens, frequent tokens and pinned tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Stage = Literal["prompt", "step"]
PromptRows = Literal["all", "last"]


@dataclass(frozen=True, eq=False)
class TargetPass:
    """One request's part of a pass of the target.

    Attributes:
        stage: "prompt" if the target read given tokens, "step" if it verified a draft.
        tokens: int64 [n], the input tokens: a prompt (or a later given turn), or a draft tree with
            its root first.
        top_tokens: int64 [n, t], the target's likeliest next tokens after each row, the likeliest
            first; t may be 0. If only the last row's were computed (:attr:`Policy.prompt_rows`),
            the other rows are -1.
        chosen: int64 [n], the token that followed each row in the text (accepted or bonus); -1 for
            rows that are not on the accepted path. The rows of that path are in text order.
    """

    stage: Stage
    tokens: Tensor
    top_tokens: Tensor
    chosen: Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """A rule that selects tokens from one kind of pass.

    Attributes:
        name: name in reports and in the policy's name.
        stage: the kind of pass from which the source selects tokens.
        select: a function that returns int64 [n, c], one row per input token; -1 is padding. It
            must not read a value back to the host, and the shape of its result may depend only on
            the shape of its input, so that a CUDA graph can capture it.
        budget: the largest number of tokens per pass; None for all. The newest tokens (the last in
            row order) are kept.
        target_top_k: number of the target's likeliest tokens that the source needs at every row.
            A number above 1 costs a top-k over V, and in the prompt logits at every row.
        prompt_rows: whether the source needs them at every row of a prompt ("all") or only at the
            last row ("last"), which serving engines compute anyway.

    Raises:
        ValueError: an invalid stage, budget, target_top_k or prompt_rows.
    """

    name: str
    stage: Stage
    select: Callable[[TargetPass], Tensor]
    budget: int | None = None
    target_top_k: int = 0
    prompt_rows: PromptRows = "all"

    def __post_init__(self) -> None:
        checks = [
            ("stage", self.stage in get_args(Stage), "'prompt' or 'step'", self.stage),
            ("budget", self.budget is None or self.budget >= 1, "at least 1 or None", self.budget),
            ("target_top_k", self.target_top_k >= 0, "at least 0", self.target_top_k),
            (
                "prompt_rows",
                self.prompt_rows in get_args(PromptRows),
                "'all' or 'last'",
                self.prompt_rows,
            ),
        ]
        for argument, fine, expected, got in checks:
            if not fine:
                raise ValueError(f"Source: {argument}: expected {expected}, got {got!r}")

    def tokens(self, target_pass: TargetPass) -> Tensor:
        """Select tokens within the budget: int64 [n, c], -1 is padding."""
        taken = self.select(target_pass)
        if self.budget is None or self.budget >= taken.numel():
            return taken
        present = (taken >= 0).flatten()
        newer = present.flip(0).cumsum(0).flip(0)  # count of this token and those after it
        return torch.where(newer.view_as(taken) <= self.budget, taken, -1)


@dataclass(frozen=True, eq=False)
class Policy:
    """A choice of tokens that enter an active vocabulary, and of tokens that never leave it.

    Attributes:
        sources: the sources, in the order of their tokens within a row. The last source's tokens
            are the newest, so an LRU vocabulary evicts them last.
        frequent_tokens: token ids that a vocabulary begins with, the most frequent first, as many
            as fit. They are evicted when selected tokens need their slots.
        pinned: token ids that are never evicted, the most frequent first.
    """

    sources: tuple[Source, ...]
    frequent_tokens: Tensor | Sequence[int] = ()
    pinned: Tensor | Sequence[int] = ()

    @property
    def name(self) -> str:
        """The sources with budgets, "filled" if there are frequent tokens, and the pinned tokens.

        For example "prompt+top3=64+filled+pin1024".
        """
        names = [s.name if s.budget is None else f"{s.name}={s.budget}" for s in self.sources]
        pinned = [f"pin{len(self.pinned)}"] if len(self.pinned) else []
        filled = ["filled"] if len(self.frequent_tokens) else []
        return "+".join([*dict.fromkeys(names), *filled, *pinned])

    def target_top_k(self, stage: Stage) -> int:
        """Return the number of the target's likeliest tokens that a pass of that stage needs."""
        return max((s.target_top_k for s in self.sources if s.stage == stage), default=0)

    @property
    def prompt_rows(self) -> Literal["all", "last", "none"]:
        """The rows of a prompt at which the sources need the target's likeliest tokens."""
        wanted = {s.prompt_rows for s in self.sources if s.stage == "prompt" and s.target_top_k}
        return "all" if "all" in wanted else "last" if wanted else "none"

    def select(self, target_pass: TargetPass) -> Tensor:
        """Return all sources' tokens: int64 [N], row by row, the newest last; -1 is padding.

        The method reads nothing back to the host. N depends only on the shapes in `target_pass`.
        """
        stage = target_pass.stage
        columns = [source.tokens(target_pass) for source in self.sources if source.stage == stage]
        return torch.cat(columns, dim=1).flatten() if columns else target_pass.tokens[:0]
