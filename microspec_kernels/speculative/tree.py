# SPDX-License-Identifier: Apache-2.0
"""EAGLE-2's dynamic draft trees (arXiv 2406.16858): grown by probability, cut to the best nodes."""

from dataclasses import dataclass
from functools import cache as once
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .graphs import to_device
from .heads import Head
from .models.cache import KVCache, identity
from .models.draft import Draft
from .stats import Clock


@dataclass(frozen=True)
class TreeShape:
    """The limits of a draft tree.

    `depth`: calls of the draft's head, each with at most `tree_width` rows and `tree_width`
        candidates a row.
    `size`: the most nodes verified, the root excluded.
    """

    depth: int
    tree_width: int
    size: int


@dataclass(frozen=True)
class Tree:
    """One tree for each of B texts, in n nodes, on the device; smaller trees are padded at the end.

    Node 0 is the root, the newest token of the text; a parent comes before its children. n is
    `TreeShape.size` + 1, or less if no tree of this depth and width has as many nodes.

    `tokens` int64 [B, n]: -1 for padding.
    `parents` int64 [B, n]: the parent of the root and of padding is the root.
    `ancestor_mask` bool [B, n, n]: entry [b, i, j] is set if node j is an ancestor of
        node i, or i itself.
    """

    tokens: Tensor
    parents: Tensor
    ancestor_mask: Tensor

    @cached_property
    def depths(self) -> Tensor:
        """Number of each node's ancestors, int64 [B, n]."""
        return self.ancestor_mask[:, :, 1:].sum(2)

    @property
    def sizes(self) -> Tensor:
        """Each tree's number of nodes without padding, int64 [B]."""
        return (self.tokens >= 0).sum(1)


def grow(
    roots: Tensor,
    features: Tensor,
    text_groups: Tensor,
    draft: Draft,
    cache: KVCache,
    head: Head,
    shape: TreeShape,
    clock: Clock,
) -> Tree:
    """Draft a tree below each root int64 [B], whose draft features are [B, D].

    text_groups: int64 [B], each text's vocabulary in the head.

    Each level asks the head for the candidates after the frontier. The best `tree_width` candidates
    by log-probability of the whole path form the next frontier. The candidates of all levels
    compete for the tree. At the end the draft's cache drops the entries of the nodes, because they
    rest on predicted features. A CUDA graph can capture the call: no shape depends on a value.
    """
    # The frontier: nodes that have features and no children yet. The pool: all nodes in the order
    # found, root first. A path's cost is its log-probability, negated. Where a head has too few
    # tokens, a node has token -1 and an infinite cost, and so have its descendants. NaN, which is
    # last in the order of `ranked`, counts as infinite.
    path_costs = filled(0, torch.float32, roots.device).expand(len(roots), -1)
    positions, mask, features = cache.ahead(shape.depth), cache.mask(), features[:, None]
    pool_tokens, pool_costs, frontiers = [roots[:, None]], [path_costs], []
    for level in range(shape.depth):
        with clock("head"):
            log_probs, tokens = head.topk(
                draft.head_input(features).flatten(0, 1),
                shape.tree_width,
                text_groups[:, None].expand(-1, features.shape[1]).flatten(),
            )
        with clock("tree"):
            answers, before = tokens.shape[1], path_costs[:, :, None]
            costs = before - log_probs.reshape(*path_costs.shape, answers)
            # Rounding must not lower a path's cost, or a node would outrank its parent.
            costs = costs.maximum(before).flatten(1)
            tokens = tokens.reshape(costs.shape)
            pool_tokens.append(tokens)
            pool_costs.append(costs)
            if level == shape.depth - 1:
                break
            path_costs, best = (part[:, : shape.tree_width] for part in ranked(costs))
            rows = best // answers
            frontiers.append(best)
            tokens = tokens.gather(1, best)
            new = cache.alone(best.shape[1])
            mask = torch.cat((new, of_rows(mask, rows)), dim=2)
        with clock("draft_layer"):
            position = positions[:, level : level + 1]
            features = draft.step(tokens, of_rows(features, rows), position, mask, cache)
    cache.drop()
    with clock("tree"):
        widths = tuple(best.shape[1] for best in frontiers)
        layout = Layout.of(widths, answers, roots.device)
        root, padding = (
            filled(value, roots.dtype, roots.device).expand(len(roots), -1) for value in (0, -1)
        )
        frontier = torch.cat((root, *frontiers), dim=1) + layout.begins
        parents = frontier.index_select(1, layout.parents)
        pool_tokens.append(padding)
        tokens, costs = (torch.cat(part, dim=1) for part in (pool_tokens, pool_costs))
        return best_nodes(tokens, parents, costs, shape)


class Layout(NamedTuple):
    """Constants of a pool whose root and frontiers have `answers` candidates for each node.

    `begins` int64 [S]: for the root and each node of the frontiers, where in the pool its level's
    candidates begin; 0 for the root.
    `parents` int64 [N + 1]: of each node of the pool, and of padding, the place in `begins` of its
    parent; the root's for itself and for padding.
    """

    begins: Tensor
    parents: Tensor

    @staticmethod
    @once
    def of(widths: tuple[int, ...], answers: int, device: torch.device) -> "Layout":
        """Return the layout for frontiers of these widths after the root."""
        begins, begin = [0], 1
        for width, before in zip(widths, (1, *widths), strict=False):
            begins += [begin] * width
            begin += before * answers
        parents = [place for place in range(len(begins)) for _ in range(answers)]
        return Layout(to_device(begins, device), to_device([0, *parents, 0], device))


@once
def filled(value: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a constant [1, 1]. Captured graphs read it, so it is never freed."""
    return torch.full((1, 1), value, dtype=dtype, device=device)


def best_nodes(tokens: Tensor, parents: Tensor, costs: Tensor, shape: TreeShape) -> Tree:
    """Return the trees of the root (node 0) and the `shape.size` best other nodes of pools.

    costs: fp32 [B, N], infinite or NaN for what is no node. A parent comes before its children and
        costs no more. So in a stable order by cost an ancestor comes first, even at equal costs,
        and the best nodes always form a tree.
    tokens, parents: int64 [B, N + 1]; the last column stands for padding, and has -1 and 0.
    """
    pad = costs.shape[1]
    best, chosen = (part[:, : shape.size + 1] for part in ranked(costs))
    # Restore the order found. Padding sorts last.
    chosen = chosen.where(best < torch.inf, pad).sort(1).values
    parents = torch.searchsorted(chosen, parents.gather(1, chosen))
    return Tree(tokens.gather(1, chosen), parents, ancestors(parents, shape.depth))


def ancestors(parents: Tensor, depth: int) -> Tensor:
    """Return the `Tree.ancestor_mask` of parents int64 [B, n], of nodes at most `depth` deep."""
    # Entry [b, i, j] counts the ways from i to j in `steps` steps, each to the parent or none.
    none = identity(parents.shape[1], torch.float32, parents.device).expand(len(parents), -1, -1)
    ways, steps = none.scatter(2, parents[:, :, None], 1.0), 1
    while steps < depth:
        ways, steps = ways @ ways, 2 * steps
        if steps > 64:  # binomials of 64 are far from fp32's end, those of 256 beyond it
            ways.clamp_(max=1)
    return ways > 0


def of_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows int64 [B, n] of a table [B, N, c], separately for each text: [B, n, c]."""
    return table.gather(1, rows[:, :, None].expand(-1, -1, table.shape[2]))


def ranked(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Sort fp32 costs [B, n], rising; equal costs keep their order. Returns them and indices."""
    return costs.sort(dim=1, stable=True)
