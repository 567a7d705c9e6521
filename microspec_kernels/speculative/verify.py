# SPDX-License-Identifier: Apache-2.0
"""Verify drafts losslessly: the output follows the target's distribution for any draft."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from microspec_kernels.ops import tree_accept

from .sampling import draw
from .tree import Tree


class Verified(NamedTuple):
    """The accepted part of B drafts of n nodes, and the tokens that continue the texts.

    `paths` int64 [B, m]: the accepted nodes from the root (node 0) on, then 0.
    `tokens` int64 [B, m]: the token after each accepted node, then -1: the accepted tokens and the
        bonus.
    `chosen` int64 [B, n]: the same tokens at their nodes; -1 at nodes that are not accepted.
    `counts` int64 [B]: number of these tokens, at least 1.
    `leaves` int64 [B]: the last accepted node.
    """

    paths: Tensor
    tokens: Tensor
    chosen: Tensor
    counts: Tensor
    leaves: Tensor


def accept(tree: Tree, chosen: Tensor, depth: int) -> Verified:
    """Accept the nodes of trees whose tokens, and whose ancestors' tokens, the target chose.

    chosen: int64 [B, n], the target's token after each node; any other than a token's id after
        nodes that are not accepted.
    depth: the trees' depth.
    """
    return Verified(*tree_accept(tree.tokens, tree.parents, chosen, depth))


def follow(tree: Tree, choose: Callable[[Tensor, Tensor], Tensor], depth: int) -> Verified:
    """Walk down the trees by the target's choices, as long as they are in the tree.

    tree: drafts of B texts, of at most `depth` levels.
    choose: takes one node of each text, int64 [B], and the nodes' depths int64 [B]; returns the
        target's tokens int64 [B] after these nodes. `follow` asks only at nodes whose token it
        emits, because drawing one takes a softmax, and maybe a sort, over V. At a text's last node
        it may ask again.

    Lossless, because the choice at a node is drawn from the target's distribution after the text
    that ends there, with the random number of its position (`sampling.uniforms_at`), which the
    draft cannot change. So, token by token, the text equals the target's own text for the same
    seed, and the tree only decides how much of it one pass yields. The numbers of different
    positions are independent and uniform, so the text has the target's distribution.
    """
    nodes = torch.zeros_like(tree.tokens[:, 0])
    depths, chosen = nodes, torch.full_like(tree.tokens, -1)
    for _ in range(depth + 1):
        token = choose(nodes, depths)[:, None]
        chosen = chosen.scatter(1, nodes[:, None], token)
        children = (tree.parents == nodes[:, None]) & (tree.tokens == token)
        children[:, 0] = False  # the root is its own parent but not a child
        found, child = children.max(1)
        nodes, depths = torch.where(found, child, nodes), depths + found
        if found.device.type == "cpu" and not bool(found.any()):
            break  # all further turns would ask again; on a GPU this would wait for the device
    return accept(tree, chosen, depth)


def verify_chain(p: Tensor, q: Tensor, drafted: Tensor, accept: Tensor, final: Tensor) -> Verified:
    """Keep the tokens of sampled chains that the target accepts, and add one token of the target.

    p fp64 [B, d+1, V]: the target's probabilities after the root and after each drafted token.
    q fp64 [B, d, V]: the probabilities from which the tokens `drafted` int64 [B, d] were drawn.
        Where no token was drawn, q is zero and the token is -1.
    accept fp64 [B, d], final fp64 [B, d+1]: uniform numbers in [0, 1), independent of each other
        and of the numbers that produced q and `drafted`. `final[:, i]` draws the last token if i
        tokens are accepted.

    Speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318) keeps a
    token x drawn from q with probability min(1, p(x)/q(x)); otherwise it draws one from (p - q)+,
    normalised. In total, token t has the probability min(p(t), q(t)) + (1 - sum of min(p, q)) (p(t)
    - q(t))+ / sum of (p - q)+ = p(t), because the sum of (p - q)+ is 1 - sum of min(p, q). If all
    tokens are kept, the bonus token is drawn from p.
    """
    drafted_ids = drafted.clamp(min=0)[..., None]
    p_drafted, q_drafted = (
        p[:, :-1].gather(2, drafted_ids)[..., 0],
        q.gather(2, drafted_ids)[..., 0],
    )
    kept = accepted(p_drafted, q_drafted, accept)
    count = kept.long().cumprod(1).sum(1)
    row = torch.arange(len(p), device=p.device)
    # No token was drafted after the last one: q is zero there, so the residual is p.
    rest = residual(p[row, count], F.pad(q, (0, 0, 0, 1))[row, count])
    tokens = F.pad(drafted, (0, 1), value=-1)
    tokens[row, count] = draw(rest, final[row, count])
    nodes = torch.arange(tokens.shape[1], device=p.device).expand_as(tokens)
    behind = nodes > count[:, None]
    tokens = tokens.masked_fill(behind, -1)
    return Verified(nodes.masked_fill(behind, 0), tokens, tokens, count + 1, count)


def accepted(p: Tensor, q: Tensor, uniforms: Tensor) -> Tensor:
    """Return which tokens of probability p at the target and q at the draft are kept: bool.

    The comparison is a product instead of p / q, so that q may underflow. A token with q = 0 was
    not drawn from q and is rejected.
    """
    return (q > 0) & (uniforms * q < p)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Return the target's excess over the draft, (p - q)+ [B, V], unnormalised.

    Where it sums to zero, p and q differ only by rounding, and the result is p.
    """
    over = (p - q).clamp(min=0)
    return torch.where(over.sum(-1, keepdim=True) > 0, over, p)
