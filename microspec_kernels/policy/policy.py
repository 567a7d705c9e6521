"""Define a vocabulary policy: sources of tokens, and a floor that is never evicted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Stage = Literal["prompt", "step"]
Rows = Literal["all", "last"]


@dataclass(frozen=True, eq=False)
class TargetPass:
    """One request's part of a pass of the target.

    Attributes:
        stage: "prompt" where given tokens went in, "step" where a draft was verified.
        tokens: int64 [n], what went in: a prompt (or a later given turn), or a draft tree with its
            root first.
        top_tokens: int64 [n, t], the target's likeliest next tokens after each row, the likeliest
            first; t may be 0. Where only the last row's were computed (:meth:`Policy.rows`), -1
            elsewhere.
        chosen: int64 [n], the token by which the text went on after each row (accepted or bonus),
            -1 for rows that are not on the accepted path. In text order along the rows.
    """

    stage: Stage
    tokens: Tensor
    top_tokens: Tensor
    chosen: Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """A rule that takes tokens from one kind of pass.

    Attributes:
        name: what it is called in figures.
        stage: the kind of pass that it takes tokens from.
        select: gives int64 [n, c], a row per token that went in; -1 is nothing. It must not read a
            value back to the host, and its shape may only depend on its input's: so a CUDA graph
            can capture it.
        budget: at most so many tokens a pass, the newest (the last in row order); None for all.
        target_top_k: how many of the target's likeliest tokens it wants at every row. Beyond the
            argmax that costs a top-k over V, and in the prompt logits at every row.
        rows: of a prompt, whether it wants them at every row or only at the last, which is what
            serving engines compute anyway.
        reset: forgets the text, where `select` remembers it.

    Raises:
        ValueError: a stage, budget, target_top_k or rows that is none.
    """

    name: str
    stage: Stage
    select: Callable[[TargetPass], Tensor]
    budget: int | None = None
    target_top_k: int = 0
    rows: Rows = "all"
    reset: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        checks = [
            ("stage", self.stage in get_args(Stage), "'prompt' or 'step'", self.stage),
            ("budget", self.budget is None or self.budget >= 1, "at least 1 or None", self.budget),
            ("target_top_k", self.target_top_k >= 0, "at least 0", self.target_top_k),
            ("rows", self.rows in get_args(Rows), "'all' or 'last'", self.rows),
        ]
        for argument, fine, expected, got in checks:
            if not fine:
                raise ValueError(f"Source: {argument}: expected {expected}, got {got!r}")

    def tokens(self, target_pass: TargetPass) -> Tensor:
        """Select tokens within the budget: int64 [n, c], -1 is nothing."""
        taken = self.select(target_pass)
        if self.budget is None or self.budget >= taken.numel():
            return taken
        present = (taken >= 0).flatten()
        newer = present.flip(0).cumsum(0).flip(0)  # this one and those after it
        return torch.where(newer.view_as(taken) <= self.budget, taken, -1)


@dataclass(frozen=True, eq=False)
class Policy:
    """What enters an active vocabulary, and what never leaves it.

    Attributes:
        sources: in the order of their tokens within a row: the last source's are the newest, which
            an LRU vocabulary forgets last.
        initial: token ids that a vocabulary begins with, as many as it has room for, the likeliest
            first; they leave when what the sources take needs their slots.
        pinned: token ids that are never evicted, the most frequent first.

    A policy whose sources remember the text (:meth:`reset`) serves one request at a time.
    """

    sources: tuple[Source, ...]
    initial: Tensor | Sequence[int] = ()
    pinned: Tensor | Sequence[int] = ()

    @property
    def name(self) -> str:
        """Its sources, with their budgets, whether it begins filled, and the size of its floor."""
        names = [s.name if s.budget is None else f"{s.name}={s.budget}" for s in self.sources]
        floor = [f"floor{len(self.pinned)}"] if len(self.pinned) else []
        filled = ["filled"] if len(self.initial) else []
        return "+".join([*dict.fromkeys(names), *filled, *floor])

    def target_top_k(self, stage: Stage) -> int:
        """Return how many of the target's likeliest tokens a pass of that stage has to hold."""
        return max((s.target_top_k for s in self.sources if s.stage == stage), default=0)

    def rows(self, stage: Stage) -> Literal["all", "last", "none"]:
        """Return at which rows of such a pass they are wanted."""
        wanted = {s.rows for s in self.sources if s.stage == stage and s.target_top_k}
        return "all" if "all" in wanted else "last" if wanted else "none"

    def select(self, target_pass: TargetPass) -> Tensor:
        """Return all sources' tokens, int64 [N] by row: a later row is newer, -1 is nothing.

        Nothing is read back to the host, and N depends on the shapes in `target_pass` alone.
        """
        stage = target_pass.stage
        columns = [source.tokens(target_pass) for source in self.sources if source.stage == stage]
        return torch.cat(columns, dim=1).flatten() if columns else target_pass.tokens[:0]

    def reset(self) -> None:
        """Another text begins: sources that remember one forget it."""
        for source in self.sources:
            if source.reset is not None:
                source.reset()
