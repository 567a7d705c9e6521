# SPDX-License-Identifier: Apache-2.0
"""The ops for draft trees as calls of PyTorch's, with as few of them as we found."""

import torch
from torch import Tensor

from microspec_kernels.speculative.models.cache import identity


def level(
    before: Tensor, logits: Tensor, token_ids: Tensor, logsumexp: Tensor, width: int
) -> tuple[Tensor, ...]:
    """Return a level's costs [B, w k], and the next frontier's costs, places, tokens and rows.

    before: fp32 [B, w], the costs of the frontier.
    """
    answers, above = logits.size(1), before[:, :, None]
    log_probs = (logits - logsumexp[:, None]).view(*before.shape, answers)
    costs = (above - log_probs).maximum(above).flatten(1)
    best_costs, best = (part[:, :width] for part in costs.sort(dim=1, stable=True))
    tokens = token_ids.view(costs.shape).gather(1, best)
    return costs, best_costs, best, tokens, best // answers


def cut(
    tokens: Tensor, parents: Tensor, costs: Tensor, size: int, depth: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `tree_cut` does, from pools that begin with the root.

    tokens, parents: int64 [B, N + 1]; the last column stands for padding, and has -1 and 0.
    costs: fp32 [B, N].
    """
    best, chosen = (part[:, : size + 1] for part in costs.sort(dim=1, stable=True))
    chosen = chosen.where(best < torch.inf, costs.size(1)).sort(1).values
    parents = torch.searchsorted(chosen, parents.gather(1, chosen))
    # Entry [b, i, j] counts the ways from i to j in `steps` steps, each to the parent or none.
    none = identity(parents.size(1), torch.float32, costs.device).expand(len(costs), -1, -1)
    ways, steps = none.scatter(2, parents[:, :, None], 1.0), 1
    while steps < depth:
        ways, steps = ways @ ways, 2 * steps
    mask = ways > 0
    return tokens.gather(1, chosen), parents, mask[:, :, 1:].sum(2), mask


def accept(
    tokens: Tensor, parents: Tensor, depths: Tensor, mask: Tensor, chosen: Tensor, depth: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what `tree_accept` does."""
    wrong = tokens != chosen.gather(1, parents)
    off = (mask & wrong[:, None])[:, :, 1:].any(2)  # the root is never wrong
    deepest, leaves = depths.masked_fill(off, -1).max(1)
    columns = leaves[:, None, None].expand(-1, 1, mask.size(2))
    on_path = mask.gather(1, columns)[:, 0]
    # A parent comes before its children, so a stable sort leaves the path in order.
    in_order = on_path.sort(dim=1, descending=True, stable=True)
    on, paths = (part[:, : depth + 1] for part in in_order)
    chosen = chosen.where(on_path, -1)
    return paths.where(on, 0), chosen.gather(1, paths), chosen, deepest + 1, leaves
