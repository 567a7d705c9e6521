# SPDX-License-Identifier: Apache-2.0
"""The sources of a policy. Each selects tokens from a pass of the target in a few lines."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .defaults import TARGET_TOP_K
from .policy import Policy, PromptRows, Source, TargetPass


def prompt(budget: int | None = None) -> Source:
    """Select given tokens, including a user's later turns (MicroSpec, arXiv 2605.26444)."""
    return Source("prompt", "prompt", _tokens, budget)


def generated(budget: int | None = None) -> Source:
    """Select the text's new tokens: accepted tokens and the bonus token (arXiv 2605.26444)."""
    return Source("generated", "step", _chosen, budget)


def draft_tree(budget: int | None = None) -> Source:
    """Select every node of the draft tree, accepted or not (arXiv 2605.26444)."""
    return Source("tree", "step", _tokens, budget)


def target_top_k(k: int, budget: int | None = None) -> Source:
    """Select the target's k likeliest tokens at every node of the draft tree.

    MicroSpec uses k = 3 (arXiv 2605.26444).
    """
    return Source(f"top{k}", "step", _likeliest(k), budget, target_top_k=k)


def prompt_top_k(k: int, prompt_rows: PromptRows = "all", budget: int | None = None) -> Source:
    """Select the target's k likeliest tokens at the prompt's rows.

    MicroSpec uses k = 3 at all rows (arXiv 2605.26444). Serving engines project only the last row,
    so prompt_rows = "all" costs one more GEMM over V.
    """
    name = f"prompt_top{k}" if prompt_rows == "all" else f"prompt_last_top{k}"
    return Source(
        name, "prompt", _likeliest(k, prompt_rows), budget, target_top_k=k, prompt_rows=prompt_rows
    )


def expanded(source: Source, table: Tensor, name: str, budget: int | None = None) -> Source:
    """Select relatives of another source's tokens from a table.

    Args:
        source: the source of the tokens to look up. Its own tokens enter the vocabulary only if the
            policy also has this source.
        table: int32 or int64 [V, c] on the device of the passes' tokens, the likeliest relative
            first; -1 is padding. See :func:`~.variants`, :func:`~.successors` and
            :func:`~.neighbours`.
        name: the name of the new source.
        budget: the largest number of relatives per pass; None for all.

    Raises:
        ValueError: a table of another shape.
        TypeError: a table of another dtype.
    """
    if table.dim() != 2:
        raise ValueError(f"expanded: table: expected shape [V, c], got {list(table.shape)}")
    if table.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"expanded: table: expected int32 or int64, got {table.dtype}")

    def select(target_pass: TargetPass) -> Tensor:
        taken = source.tokens(target_pass)
        related = table[taken.clamp(min=0)].flip(2)  # the likeliest comes last, so it is newest
        return torch.where(taken[:, :, None] >= 0, related, -1).flatten(1).long()

    return Source(
        name, source.stage, select, budget, source.target_top_k, source.prompt_rows, source.reset
    )


def _tokens(target_pass: TargetPass) -> Tensor:
    return target_pass.tokens[:, None]


def _chosen(target_pass: TargetPass) -> Tensor:
    return target_pass.chosen[:, None]


def _likeliest(k: int, prompt_rows: PromptRows = "all") -> Callable[[TargetPass], Tensor]:
    def select(target_pass: TargetPass) -> Tensor:
        best = target_pass.top_tokens[:, :k].flip(1)  # the likeliest comes last, so it is newest
        return (
            best if prompt_rows == "all" else torch.cat((torch.full_like(best[:-1], -1), best[-1:]))
        )

    return select


TEXT = (prompt(), generated())
"""Sources that need only the text, neither a draft nor the target's logits."""

MICROSPEC = (prompt(), prompt_top_k(TARGET_TOP_K), draft_tree(), target_top_k(TARGET_TOP_K))
"""MicroSpec's sources (arXiv 2605.26444). Its argmax at every node is the first of these tokens."""


FILLED = (prompt(), target_top_k(TARGET_TOP_K), generated())
"""Sources for a vocabulary that begins with frequent tokens, to which MICROSPEC adds nothing."""


def default(frequent_tokens: Tensor | Sequence[int] = ()) -> Policy:
    """Return the package's default policy.

    With ``frequent_tokens``, the vocabulary begins with the most frequent tokens. Without it, the
    policy has MicroSpec's sources and the generated tokens. It costs little to fill slots that the
    text does not need with frequent tokens, and a text seldom evicts the top of the list.
    docs/policy.md has the figures.

    Args:
        frequent_tokens: token ids, the most frequent first. Preferably count them on your own
            traffic (:func:`~.count_frequent_tokens`).
    """
    return (
        Policy(FILLED, frequent_tokens)
        if len(frequent_tokens)
        else Policy((*MICROSPEC, generated()))
    )
