# SPDX-License-Identifier: Apache-2.0
"""EAGLE-2's dynamic draft trees (arXiv 2406.16858): grown by probability, cut to the best nodes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from microspec_kernels.ops import tree_cut, tree_grow_

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
    `depths` int64 [B, n]: the number of each node's ancestors.
    `ancestor_mask` bool [B, n, n]: entry [b, i, j] is set if node j is an ancestor of
        node i, or i itself.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
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
    by log-probability of the whole path form the next frontier (`tree_grow_`). The candidates of
    all levels compete for the tree (`tree_cut`). At the end the draft's cache drops the entries of
    the nodes, because they rest on predicted features. A CUDA graph can capture the call: no shape
    depends on a value.
    """
    # Where a head has too few tokens, a node has token -1 and an infinite cost, and so have its
    # descendants.
    texts, width = len(roots), shape.tree_width
    positions, mask, features = cache.ahead(shape.depth), cache.mask(), features[:, None]
    pool, frontier, begin = None, None, 0
    for level in range(shape.depth):
        with clock("head"):
            logits, token_ids, logsumexp = head.topk(
                draft.head_input(features).flatten(0, 1),
                width,
                text_groups[:, None].expand(-1, features.shape[1]).flatten(),
            )
        with clock("tree"):
            pool = pool or new_pool(texts, shape, logits.shape[1], roots.device)
            frontier, tokens, rows = tree_grow_(
                *pool, logits, token_ids, logsumexp, width, begin=begin, frontier=frontier
            )
            begin += features.shape[1] * logits.shape[1]
            if level == shape.depth - 1:
                break
            new = cache.alone(tokens.shape[1])
            mask = torch.cat((new, of_rows(mask, rows)), dim=2)
        with clock("draft_layer"):
            position = positions[:, level : level + 1]
            features = draft.step(tokens, of_rows(features, rows), position, mask, cache)
    cache.drop()
    with clock("tree"):
        assert pool is not None
        return Tree(*tree_cut(roots, *pool, shape.size))


def new_pool(
    texts: int, shape: TreeShape, answers: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens, parents and costs of pools for `tree_grow_`, uninitialised.

    They have the places of all candidates, if each node of a frontier has `answers`.
    """
    places, frontier = 0, 1
    for _ in range(shape.depth):
        places += frontier * answers
        frontier = min(shape.tree_width, frontier * answers)
    tokens = torch.empty(texts, places, dtype=torch.int64, device=device)
    return tokens, torch.empty_like(tokens), torch.empty_like(tokens, dtype=torch.float32)


def of_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows int64 [B, n] of a table [B, N, c], separately for each text: [B, n, c]."""
    if table.shape[1] == 1:
        return table.expand(-1, rows.shape[1], -1)
    return table.gather(1, rows[:, :, None].expand(-1, -1, table.shape[2]))
