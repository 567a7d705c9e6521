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
"""MicroSpec's sources (arXiv 2605.26444). These include the target's argmax at every node."""

FILLED = (prompt(), target_top_k(TARGET_TOP_K), generated())
"""Sources for a vocabulary that begins with frequent tokens.

On the demonstration pair, MICROSPEC reached the same τ there (docs/policy.md).
"""


def default(frequent_tokens: Tensor | Sequence[int] = ()) -> Policy:
    """Return the package's default policy.

    The vocabulary begins with ``frequent_tokens``, as many as fit. It costs little to fill slots
    that the text does not need with frequent tokens, and a text seldom evicts the top of the list.
    The sources are the prompt, the target's top 3 (:data:`TARGET_TOP_K`) at every node, and the
    generated tokens. Engines select the same and the drafted tokens.

    Without frequent tokens, there are two more sources, MicroSpec's: the draft tree's tokens, and
    the target's top 3 at every row of the prompt. The latter costs a GEMM over V, which engines
    skip. On the demonstration pair, greedy, the two raise τ by 2 % if the vocabulary begins empty,
    and do not if it begins filled. docs/policy.md has the figures.

    Args:
        frequent_tokens: token ids, the most frequent first. Preferably count them on your own
            traffic (:func:`~.count_frequent_tokens`).
    """
    return (
        Policy(FILLED, frequent_tokens)
        if len(frequent_tokens)
        else Policy((*MICROSPEC, generated()))
    )
