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
    """One tree for each of B texts, in n nodes; smaller trees are padded at the end.

    Node 0 is the root, the newest token of the text; a parent comes before its children.

    `tokens` int64 [B, n], on the device: -1 for padding.
    `parents` int64 [B, n], on the device: the root's parent is the root.
    `ancestor_mask` bool [B, n, n]: entry [b, i, j] is set if node j is an ancestor of
        node i, or i itself.
    `sizes`: each tree's number of nodes without padding.
    """

    tokens: Tensor
    parents: Tensor
    ancestor_mask: Tensor
    sizes: list[int]


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
    rest on predicted features.
    """
    prefix_lengths = list(cache.lengths)
    # The frontier: nodes, as indices into the pool, that have features and no children yet. The
    # pool: all nodes in the order found, root first. Where a head has too few tokens, a node has
    # token -1 and score -inf, and so have its descendants.
    frontier = torch.zeros_like(roots)[:, None]
    path_scores = torch.zeros(frontier.shape, device=roots.device)
    ancestor_mask = torch.ones(len(roots), 1, 0, dtype=torch.bool, device=roots.device)
    features = features[:, None]
    pool_tokens, pool_parents, pool_scores = [roots[:, None]], [frontier], [path_scores]
    drafted = 1
    for level in range(shape.depth):
        width = frontier.shape[1]
        with clock("head"):
            log_probs, tokens = head.topk(
                draft.head_input(features).flatten(0, 1),
                shape.tree_width,
                text_groups.repeat_interleave(width),
            )
        with clock("tree"):
            answers = tokens.shape[1]
            # Rounding must not raise a path's score, or a node would outrank its parent.
            scores = path_scores.flatten()[:, None] + log_probs.clamp(max=0)
            used = (tokens >= 0) & (scores > -torch.inf)
            scores = scores.where(used, -torch.inf).view(len(roots), -1)
            tokens = tokens.where(used, -1).view(len(roots), -1)
            pool_tokens.append(tokens)
            pool_parents.append(frontier.repeat_interleave(answers, dim=1))
            pool_scores.append(scores)
            if level == shape.depth - 1:
                break
            best = ranked(scores)[:, : shape.tree_width]
            rows = best // answers
            path_scores, frontier = scores.gather(1, best), drafted + best
            drafted += tokens.shape[1]
            tokens = tokens.gather(1, best).clamp(min=0)
            itself = torch.eye(best.shape[1], dtype=torch.bool, device=roots.device)
            itself = itself.expand(len(roots), -1, -1)
            ancestor_mask = torch.cat((of_rows(ancestor_mask, rows), itself), dim=2)
        with clock("draft_layer"):
            features = draft.step(tokens, of_rows(features, rows), ancestor_mask, cache)
    cache.keep(prefix_lengths, [[]] * len(prefix_lengths))
    with clock("tree"):
        tokens, parents, scores = (
            torch.cat(part, dim=1) for part in (pool_tokens, pool_parents, pool_scores)
        )
        return best_nodes(tokens, parents, scores, shape)


def best_nodes(tokens: Tensor, parents: Tensor, scores: Tensor, shape: TreeShape) -> Tree:
    """Return the trees of the root (node 0) and the `shape.size` best other nodes of pools [B, N].

    A parent comes before its children and scores no less. So in a stable order by score an ancestor
    comes first, even at equal scores, and the best nodes always form a tree.
    """
    chosen = ranked(scores)[:, : shape.size + 1]
    used = scores.gather(1, chosen) > -torch.inf
    sizes: list[int] = used.sum(1).tolist()
    chosen, used = chosen[:, : max(sizes)], used[:, : max(sizes)]
    # Restore the order found. Padding sorts last, because its index lies after the pool.
    pad = scores.shape[1]
    chosen = chosen.where(used, pad).sort(1).values
    used = chosen < pad
    new_index = chosen.new_zeros(len(chosen), pad + 1)
    new_index.scatter_(
        1, chosen, torch.arange(max(sizes), device=new_index.device).expand_as(chosen)
    )
    chosen = chosen.clamp(max=pad - 1)
    parents = new_index.gather(1, parents.gather(1, chosen)).where(used, 0)
    ancestor_mask = torch.eye(chosen.shape[1], dtype=torch.bool, device=chosen.device)
    ancestor_mask = ancestor_mask.repeat(len(chosen), 1, 1)
    ancestor = parents
    # Each iteration adds one generation. The root is its own parent, so every path ends there.
    for _ in range(shape.depth):
        ancestor_mask.scatter_(2, ancestor[:, :, None], True)
        ancestor = parents.gather(1, ancestor)
    return Tree(tokens.gather(1, chosen).where(used, -1), parents, ancestor_mask, sizes)


def of_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows int64 [B, n] of a table [B, N, c], separately for each text: [B, n, c]."""
    return table.gather(1, rows[:, :, None].expand(-1, -1, table.shape[2]))


def ranked(scores: Tensor) -> Tensor:
    """Return indices [B, n] of fp32 scores [B, n], falling; equal scores keep their order."""
    return scores.sort(dim=1, descending=True, stable=True).indices
