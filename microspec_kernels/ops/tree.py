# SPDX-License-Identifier: Apache-2.0
"""The ops that grow, cut and verify draft trees."""

import torch
from torch import Tensor

from .errors import reraise


def tree_grow_(
    pool_tokens: Tensor,
    pool_parents: Tensor,
    pool_costs: Tensor,
    logits: Tensor,
    token_ids: Tensor,
    logsumexp: Tensor,
    width: int,
    *,
    begin: int = 0,
    frontier: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add a level of candidates to the pool of each growing tree, and take the next frontier.

    The trees are EAGLE-2's (arXiv 2406.16858). A pool holds the candidates of all levels of a text,
    N places in the order found, without the root. A path's cost is its log-probability, negated.
    A candidate costs what its parent does and ``logsumexp - logit``, at least 0; NaN becomes
    infinite. Between equal costs the first in the pool is the better one.

    Args:
        pool_tokens: int64 [B, N].
        pool_parents: int64 [B, N], the place of each candidate's parent; -1 is the root.
        pool_costs: fp32 [B, N]; infinite: no node.
        logits: fp32 [B w, k], the candidates' after each node of the frontier, text by text, as
            :func:`sparse_head` returns them.
        token_ids: int64 [B w, k].
        logsumexp: fp32 [B w].
        width: the most nodes of the next frontier.
        begin: where in the pool the w k candidates of a text go.
        frontier: int64 [B, w], places in [0, begin) of the nodes; -1 is no node, and its
            candidates' costs are infinite. None: w = 1, the root.

    Returns:
        frontier: int64 [B, min(width, w k)], the best candidates' places, the best first.
        tokens: int64, the same shape, their tokens.
        rows: int64, the same shape, the index of each one's parent in the old frontier.

    Raises:
        ValueError, TypeError, IndexError: as :func:`sparse_head`. The op then writes nothing.
    """
    try:
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.microspec.tree_grow_(
            pool_tokens,
            pool_parents,
            pool_costs,
            logits,
            token_ids,
            logsumexp,
            width,
            begin=begin,
            frontier=frontier,
        )
    except RuntimeError as error:
        reraise(error)
    return result


def tree_cut(
    roots: Tensor, pool_tokens: Tensor, pool_parents: Tensor, pool_costs: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut each text's pool to the draft tree that the target verifies.

    The tree has the root, which is node 0, and the candidates of the smallest costs, in the pool's
    order. A parent costs no more than its children and comes before them, so the best candidates
    form a tree; a candidate whose parent is not among them, or not before it, is a child of the
    root. Smaller trees are padded at the end.

    Args:
        roots: int64 [B], the newest token of each text.
        pool_tokens, pool_parents, pool_costs: the pools [B, N], as :func:`tree_grow_` fills them.
        size: the most nodes, the root excluded. n = min(size, N) + 1.

    Returns:
        tokens: int64 [B, n]; -1 for padding.
        parents: int64 [B, n], nodes; the parent of the root and of padding is the root.
        depths: int64 [B, n], the number of each node's ancestors.
        ancestor_mask: bool [B, n, n]; entry [b, i, j] is set if node j is an ancestor of node i, or
            i itself.

    Raises:
        ValueError, TypeError, IndexError: as :func:`sparse_head`.
    """
    try:
        result: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.microspec.tree_cut(
            roots, pool_tokens, pool_parents, pool_costs, size
        )
    except RuntimeError as error:
        reraise(error)
    return result


def tree_accept(
    tokens: Tensor, parents: Tensor, chosen: Tensor, depth: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Accept the nodes of draft trees whose tokens, and whose ancestors' tokens, the target chose.

    Among them the path to the deepest is taken, to the first of equally deep ones.

    Args:
        tokens: int64 [B, n], the trees' nodes; node 0 is the root, which is always accepted.
        parents: int64 [B, n]. A node whose parent is not before it is not accepted.
        chosen: int64 [B, n], the target's token after each node; any other number than a token's
            after nodes that are not accepted.
        depth: the most ancestors of an accepted node. m = min(depth, n - 1) + 1.

    Returns:
        paths: int64 [B, m], the nodes of the path from the root on, then 0.
        path_tokens: int64 [B, m], the target's token after each node of the path, then -1: the
            accepted tokens and the bonus.
        node_tokens: int64 [B, n], the same tokens at their nodes, -1 at all others.
        counts: int64 [B], the number of nodes on the path, at least 1.
        leaves: int64 [B], the last node of the path.

    Raises:
        ValueError, TypeError, IndexError: as :func:`sparse_head`.
    """
    try:
        result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = torch.ops.microspec.tree_accept(
            tokens, parents, chosen, depth
        )
    except RuntimeError as error:
        reraise(error)
    return result
