# SPDX-License-Identifier: Apache-2.0
"""The definition of the ops that grow, cut and verify draft trees."""

import torch
from torch import Tensor


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
    """Write a level's candidates to the pool, and return the best `width` of them."""
    texts, answers = len(pool_costs), logits.size(1)
    if frontier is None:
        parents, before = pool_parents.new_full((texts, 1), -1), pool_costs.new_zeros(texts, 1)
    else:
        parents = frontier
        before = pool_costs.gather(1, frontier.clamp(min=0)).masked_fill(frontier < 0, torch.inf)
    # Rounding must not lower a path's cost, or a node would outrank its parent.
    steps = (logsumexp[:, None] - logits).clamp(min=0).view(*before.shape, answers)
    costs = (before[:, :, None] + steps).flatten(1)
    costs = costs.masked_fill(costs.isnan(), torch.inf)
    tokens = token_ids.reshape(costs.shape)
    end = begin + costs.size(1)
    pool_tokens[:, begin:end] = tokens
    pool_parents[:, begin:end] = parents.repeat_interleave(answers, dim=1)
    pool_costs[:, begin:end] = costs
    best = costs.sort(dim=1, stable=True).indices[:, :width]
    return best + begin, tokens.gather(1, best), best // answers


def tree_cut(
    roots: Tensor, pool_tokens: Tensor, pool_parents: Tensor, pool_costs: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the trees of the roots and the best `size` candidates of the pool, in its order."""
    texts, places = pool_costs.shape
    costs = pool_costs.masked_fill(pool_costs.isnan(), torch.inf)
    cheapest = costs.sort(dim=1, stable=True)
    # Restore the pool's order. Padding sorts last.
    none = cheapest.values[:, :size] == torch.inf
    chosen = cheapest.indices[:, :size].masked_fill(none, places).sort(dim=1).values
    nodes = torch.arange(1, chosen.size(1) + 1, device=roots.device).expand_as(chosen)
    # The last column is of the root and of padding.
    node_of = roots.new_zeros(texts, places + 1).scatter(1, chosen, nodes)
    node_of[:, places] = 0
    parent_places = torch.cat((pool_parents, pool_parents.new_full((texts, 1), -1)), dim=1)
    parent_places = parent_places.gather(1, chosen)
    before = (parent_places >= 0) & (parent_places < chosen)
    parents = node_of.gather(1, parent_places.where(before, places))
    tokens = torch.cat((pool_tokens, pool_tokens.new_full((texts, 1), -1)), dim=1)
    tokens = torch.cat((roots[:, None], tokens.gather(1, chosen)), dim=1)
    parents = torch.cat((torch.zeros_like(roots)[:, None], parents), dim=1)
    mask = torch.eye(tokens.size(1), dtype=torch.bool, device=roots.device).repeat(texts, 1, 1)
    for node in range(1, tokens.size(1)):
        above = parents[:, node, None, None].expand(-1, 1, tokens.size(1))
        mask[:, node] |= mask.gather(1, above)[:, 0]
    return tokens, parents, mask.sum(2) - 1, mask


def tree_accept(
    tokens: Tensor, parents: Tensor, chosen: Tensor, depth: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the path that the target chose in each tree."""
    nodes = torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)
    agrees = tokens == chosen.gather(1, parents.clamp(min=0))
    agrees &= (parents >= 0) & (parents < nodes)
    agrees[:, 0] = True
    # A node's ancestors, one step a turn; the root is its own. A depth of -1: not accepted.
    ancestor, accepted, depths = nodes, torch.ones_like(agrees), torch.zeros_like(nodes)
    above = parents.where(agrees & (nodes > 0), 0)
    for _ in range(min(depth, tokens.size(1) - 1)):
        accepted = accepted & agrees.gather(1, ancestor)
        depths = depths + (ancestor > 0)
        ancestor = above.gather(1, ancestor)
    depths = depths.masked_fill(~accepted | (ancestor > 0), -1)
    deepest = depths.amax(1, keepdim=True)
    leaves = (depths == deepest).long().argmax(1)  # the first: argmax of equal numbers is
    paths: list[Tensor] = []
    node = leaves[:, None]
    for step in range(min(depth, tokens.size(1) - 1), -1, -1):
        on_path = step <= deepest
        paths.insert(0, node.where(on_path, 0))
        node = above.gather(1, node).where(on_path, node)
    path = torch.cat(paths, dim=1)
    behind = nodes[:, : path.size(1)] > deepest
    path_tokens = chosen.gather(1, path).masked_fill(behind, -1)
    node_tokens = torch.full_like(chosen, -1).scatter(1, path, chosen.gather(1, path))
    return path, path_tokens, node_tokens, deepest[:, 0] + 1, leaves
