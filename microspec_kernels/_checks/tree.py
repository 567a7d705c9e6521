# SPDX-License-Identifier: Apache-2.0
"""Checks of the ops for draft trees."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checker import Checker
from .dtypes import dtype_name


def _of(
    check: Checker,
    tensor: Tensor,
    argument: str,
    shape: Sequence[int],
    dtype: torch.dtype = torch.int64,
) -> None:
    """Check a contiguous tensor of this dtype and shape."""
    check.dtype(tensor, argument, [dtype], dtype_name(dtype))
    check.shape(tensor, argument, shape)
    check.contiguous(tensor, argument)
    check.on_device(tensor, argument)


def _pool(check: Checker, tokens: Tensor, parents: Tensor, costs: Tensor) -> None:
    """Check a pool [B, N]; its tokens have two dimensions."""
    _of(check, tokens, "pool_tokens", tokens.shape)
    _of(check, parents, "pool_parents", tokens.shape)
    _of(check, costs, "pool_costs", tokens.shape, torch.float32)


def tree_grow(
    pool_tokens: Tensor,
    pool_parents: Tensor,
    pool_costs: Tensor,
    logits: Tensor,
    token_ids: Tensor,
    logsumexp: Tensor,
    width: int,
    begin: int,
    frontier: Tensor | None,
) -> Checker:
    """Check the arguments of tree_grow_, except the frontier's values."""
    check = Checker("tree_grow_", pool_tokens.device)
    got = list(pool_tokens.shape)
    check.value(pool_tokens.dim() == 2, "pool_tokens", "shape [B, N]", got)
    _pool(check, pool_tokens, pool_parents, pool_costs)
    texts, places = pool_tokens.shape
    rows = texts
    if frontier is not None:
        fits = frontier.dim() == 2 and frontier.size(0) == texts and frontier.size(1) >= 1
        check.value(fits, "frontier", f"shape [{texts}, w], w >= 1", list(frontier.shape))
        _of(check, frontier, "frontier", frontier.shape)
        rows = texts * frontier.size(1)
    fits = logits.dim() == 2 and logits.size(0) == rows and logits.size(1) >= 1
    check.value(fits, "logits", f"shape [{rows}, k], k >= 1", list(logits.shape))
    _of(check, logits, "logits", logits.shape, torch.float32)
    _of(check, token_ids, "token_ids", logits.shape)
    _of(check, logsumexp, "logsumexp", (rows,), torch.float32)
    check.value(width >= 1, "width", "at least 1", width)
    frontier_width = 1 if frontier is None else frontier.size(1)
    last = places - frontier_width * logits.size(1)
    check.value(0 <= begin <= last, "begin", f"0 to N - w k = {last}", begin)
    return check


def tree_cut(
    roots: Tensor, pool_tokens: Tensor, pool_parents: Tensor, pool_costs: Tensor, size: int
) -> Checker:
    """Check the arguments of tree_cut, except the parents' values."""
    check = Checker("tree_cut", roots.device)
    check.value(roots.dim() == 1, "roots", "shape [B]", list(roots.shape))
    _of(check, roots, "roots", roots.shape)
    fits = pool_tokens.dim() == 2 and pool_tokens.size(0) == len(roots)
    check.value(fits, "pool_tokens", f"shape [{len(roots)}, N]", list(pool_tokens.shape))
    _pool(check, pool_tokens, pool_parents, pool_costs)
    check.value(size >= 1, "size", "at least 1", size)
    return check


def tree_accept(tokens: Tensor, parents: Tensor, chosen: Tensor, depth: int) -> Checker:
    """Check the arguments of tree_accept, except the parents' values."""
    check = Checker("tree_accept", tokens.device)
    fits = tokens.dim() == 2 and tokens.size(1) >= 1
    check.value(fits, "tokens", "shape [B, n], n >= 1", list(tokens.shape))
    for tensor, argument in ((tokens, "tokens"), (parents, "parents"), (chosen, "chosen")):
        _of(check, tensor, argument, tokens.shape)
    check.value(depth >= 0, "depth", "at least 0", depth)
    return check
