# SPDX-License-Identifier: Apache-2.0
"""EAGLE-2's dynamic draft trees (arXiv 2406.16858): grown by probability, cut to the best nodes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .heads import Head
from .models.cache import KVCache
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
    # The frontier: nodes, as indices into the pool, that have features and no children yet. The
    # pool: all nodes in the order found, root first. Where a head has too few tokens, a node has
    # token -1 and score -inf, and so have its descendants.
    root = torch.zeros_like(roots)[:, None]
    path_scores = root.float()
    positions, mask, features = cache.ahead(shape.depth), cache.mask(), features[:, None]
    pool_tokens, pool_scores, frontiers = [roots[:, None]], [path_scores], [root]
    itself = torch.eye(shape.tree_width, dtype=torch.bool, device=roots.device)
    drafted = 1
    for level in range(shape.depth):
        with clock("head"):
            log_probs, tokens = head.topk(
                draft.head_input(features).flatten(0, 1),
                shape.tree_width,
                text_groups[:, None].expand(-1, features.shape[1]).flatten(),
            )
        with clock("tree"):
            answers = tokens.shape[1]
            scores = path_scores[:, :, None] + log_probs.reshape(*path_scores.shape, answers)
            # Rounding must not raise a path's score, or a node would outrank its parent.
            scores = scores.minimum(path_scores[:, :, None]).flatten(1)
            scores = scores.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
            tokens = tokens.reshape(scores.shape)
            pool_tokens.append(tokens)
            pool_scores.append(scores)
            if level == shape.depth - 1:
                break
            path_scores, best = (part[:, : shape.tree_width] for part in ranked(scores))
            rows, width = best // answers, best.shape[1]
            frontiers.append(best + drafted)
            drafted += tokens.shape[1]
            tokens = tokens.gather(1, best)
            new = itself[:width, :width].expand(len(roots), -1, -1)
            mask = torch.cat((new, of_rows(mask, rows)), dim=2)
        with clock("draft_layer"):
            position = positions[:, level : level + 1]
            features = draft.step(tokens, of_rows(features, rows), position, mask, cache)
    cache.drop()
    with clock("tree"):
        pool_tokens.append(torch.full_like(root, -1))
        tokens, scores, frontier = (
            torch.cat(part, dim=1) for part in (pool_tokens, pool_scores, frontiers)
        )
        parents = torch.cat((root, frontier.repeat_interleave(answers, dim=1), root), dim=1)
        return best_nodes(tokens, parents, scores, shape)


def best_nodes(tokens: Tensor, parents: Tensor, scores: Tensor, shape: TreeShape) -> Tree:
    """Return the trees of the root (node 0) and the `shape.size` best other nodes of pools.

    scores: fp32 [B, N], -inf for what is no node. A parent comes before its children and scores no
        less. So in a stable order by score an ancestor comes first, even at equal scores, and the
        best nodes always form a tree.
    tokens, parents: int64 [B, N + 1]; the last column stands for padding, and has -1 and 0.
    """
    pad = scores.shape[1]
    best, chosen = (part[:, : shape.size + 1] for part in ranked(scores))
    # Restore the order found. Padding sorts last.
    chosen = chosen.masked_fill(best == -torch.inf, pad).sort(1).values
    parents = torch.searchsorted(chosen, parents.gather(1, chosen))
    # The root is its own parent, so every path ends there.
    path = [torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen), parents]
    while len(path) <= shape.depth:
        path.append(parents.gather(1, path[-1]))
    count = chosen.shape[1]
    ancestor_mask = torch.zeros(len(chosen), count, count, dtype=torch.bool, device=chosen.device)
    ancestor_mask.scatter_(2, torch.stack(path, dim=2), True)
    return Tree(tokens.gather(1, chosen), parents, ancestor_mask)


def of_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows int64 [B, n] of a table [B, N, c], separately for each text: [B, n, c]."""
    return table.gather(1, rows[:, :, None].expand(-1, -1, table.shape[2]))


def ranked(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Sort fp32 scores [B, n], falling; equal scores keep their order. Returns them and indices."""
    return scores.sort(dim=1, descending=True, stable=True)
