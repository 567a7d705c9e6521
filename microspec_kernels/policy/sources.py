"""The sources of a policy: each a few lines over what a pass of the target showed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .policy import Policy, Rows, Source, TargetPass


def prompt(budget: int | None = None) -> Source:
    """What was given, a user's later turns included (MicroSpec, arXiv 2605.26444)."""
    return Source("prompt", "prompt", _tokens, budget)


def generated(budget: int | None = None) -> Source:
    """What the text went on with: accepted tokens and the bonus token (arXiv 2605.26444)."""
    return Source("generated", "step", _chosen, budget)


def draft_tree(budget: int | None = None) -> Source:
    """Every node of the draft tree, accepted or not (arXiv 2605.26444)."""
    return Source("tree", "step", _tokens, budget)


def top_k(k: int, budget: int | None = None) -> Source:
    """The target's k likeliest at every node of the tree; MicroSpec takes 3 (arXiv 2605.26444)."""
    return Source(f"top{k}", "step", _likeliest(k), budget, target_top_k=k)


def prompt_top_k(k: int, rows: Rows = "all", budget: int | None = None) -> Source:
    """The target's k likeliest at the prompt's rows; MicroSpec takes 3 at all (arXiv 2605.26444).

    Serving engines project only the last row: all rows cost one GEMM over V more.
    """
    name = f"prompt_top{k}" if rows == "all" else f"prompt_last_top{k}"
    return Source(name, "prompt", _likeliest(k, rows), budget, target_top_k=k, rows=rows)


def expanded(source: Source, table: Tensor, name: str, budget: int | None = None) -> Source:
    """Relatives of the tokens that another source takes, by a table.

    Args:
        source: whose tokens are looked up; take it into the policy too if they shall enter.
        table: int32 or int64 [V, c] on the device of the passes' tokens, the likeliest relative
            first, -1 is nothing. See :func:`~.variants`, :func:`~.successors` and
            :func:`~.neighbours`.
        budget: at most so many relatives a pass.

    Raises:
        ValueError, TypeError: a table of another shape or dtype.
    """
    if table.dim() != 2:
        raise ValueError(f"expanded: table: expected shape [V, c], got {list(table.shape)}")
    if table.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"expanded: table: expected int32 or int64, got {table.dtype}")

    def select(target_pass: TargetPass) -> Tensor:
        taken = source.tokens(target_pass)
        related = table[taken.clamp(min=0)].flip(2)  # the likeliest last: the newest
        return torch.where(taken[:, :, None] >= 0, related, -1).flatten(1).long()

    return Source(
        name, source.stage, select, budget, source.target_top_k, source.rows, source.reset
    )


def _tokens(target_pass: TargetPass) -> Tensor:
    return target_pass.tokens[:, None]


def _chosen(target_pass: TargetPass) -> Tensor:
    return target_pass.chosen[:, None]


def _likeliest(k: int, rows: Rows = "all") -> Callable[[TargetPass], Tensor]:
    def select(target_pass: TargetPass) -> Tensor:
        best = target_pass.top_tokens[:, :k].flip(1)  # the likeliest last: the newest
        return best if rows == "all" else torch.cat((torch.full_like(best[:-1], -1), best[-1:]))

    return select


TEXT = (prompt(), generated())
"""What a text alone shows, without a draft and without the target's logits."""

MICROSPEC = (prompt(), prompt_top_k(3), draft_tree(), top_k(3))
"""MicroSpec's sources (arXiv 2605.26444); its argmax at every node is the first of the top 3."""


FILLED = (prompt(), top_k(3), generated())
"""What a vocabulary that begins filled gains from; the rest of MICROSPEC adds nothing there."""


def default(frequency: Tensor | Sequence[int] = ()) -> Policy:
    """The package's own choice: a vocabulary that begins filled, or MicroSpec's without a list.

    Slots that the text does not need cost little to fill with frequent tokens, and a text seldom
    comes to evict the top of the list; docs/policy.md has the figures.

    Args:
        frequency: token ids by falling frequency, best counted on one's own traffic
            (:func:`~.frequency_rank`).
    """
    return Policy(FILLED, frequency) if len(frequency) else Policy((*MICROSPEC, generated()))
