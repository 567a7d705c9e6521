"""What of a draft the target keeps: the output follows the target's law, whatever was drafted."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .sampling import draw
from .tree import Tree


class Verified(NamedTuple):
    """How B texts go on.

    `paths` int64 [B, m]: the nodes that are accepted, from the root (node 0) on, then -1.
    `tokens` int64 [B, m]: the token after each of them, then -1: those accepted, and the bonus.
    `counts` int64 [B]: how many tokens those are, at least 1.
    """

    paths: Tensor
    tokens: Tensor
    counts: Tensor


def follow(tree: Tree, choose: Callable[[Tensor, Tensor], Tensor]) -> Verified:
    """Walk down the trees by the target's choices, as long as they are in the tree.

    choose: takes texts int64 [a] and a node int64 [a] of each, gives the target's tokens int64 [a]
        after these nodes. It is asked for no token that is not emitted, as drawing one takes a
        softmax, and maybe a sort, over V.

    Why this is lossless: the choice at a node is drawn from the target's law after the text that
    ends there, by the number of its position (`sampling.uniforms`), which nothing in the draft
    can change. So, token by token, the text is what the target alone emits with the same seed,
    and the tree only decides how much of it one pass yields. The numbers of different positions
    are independent and uniform, so the law of the text is the target's.
    """
    batch = len(tree.tokens)
    texts = torch.arange(batch, device=tree.tokens.device)
    nodes = torch.zeros_like(texts)
    paths: list[Tensor] = []
    tokens: list[Tensor] = []
    while len(texts):
        chosen = choose(texts, nodes)
        for columns, column in ((paths, nodes), (tokens, chosen)):
            columns.append(column.new_full((batch,), -1).index_copy_(0, texts, column))
        children = (tree.parents[texts] == nodes[:, None]) & (tree.tokens[texts] == chosen[:, None])
        children[:, 0] = False  # the root is its own parent, but no child
        going = children.any(1)
        texts, nodes = texts[going], children.int().argmax(1)[going]
    path = torch.stack(paths, dim=1)
    return Verified(path, torch.stack(tokens, dim=1), (path >= 0).sum(1))


def verify_chain(p: Tensor, q: Tensor, drafted: Tensor, accept: Tensor, final: Tensor) -> Verified:
    """Keep what the target accepts of sampled chains, and one token of its own behind that.

    p fp64 [B, d+1, V]: the target's laws after the root and after each drafted token.
    q fp64 [B, d, V]: the laws that the tokens `drafted` int64 [B, d] were drawn from; zeros where
        none was drawn, and the token is -1.
    accept fp64 [B, d], final fp64 [B, d+1]: uniform numbers in [0, 1), independent of each other
        and of everything that q and `drafted` came from; `final[:, i]` serves if i are accepted.

    Speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318): a
    token x drawn from q is kept with probability min(1, p(x)/q(x)), else one is drawn from
    (p - q)+, normalised. Kept or not, token t then comes out with probability
    min(p(t), q(t)) + (1 - sum of min(p, q)) (p(t) - q(t))+ / sum of (p - q)+ = p(t), as the sum
    of (p - q)+ is 1 - sum of min(p, q). Where all are kept, the bonus token is drawn from p.
    """
    known = drafted.clamp(min=0)[..., None]
    p_drafted, q_drafted = p[:, :-1].gather(2, known)[..., 0], q.gather(2, known)[..., 0]
    kept = accepted(p_drafted, q_drafted, accept)
    count = kept.long().cumprod(1).sum(1)
    row = torch.arange(len(p), device=p.device)
    # Behind the last drafted token nothing was drafted: q is zero there, and the rest is p.
    rest = residual(p[row, count], F.pad(q, (0, 0, 0, 1))[row, count])
    tokens = F.pad(drafted, (0, 1), value=-1)
    tokens[row, count] = draw(rest, final[row, count])
    nodes = torch.arange(tokens.shape[1], device=p.device).expand_as(tokens)
    behind = nodes > count[:, None]
    return Verified(nodes.masked_fill(behind, -1), tokens.masked_fill(behind, -1), count + 1)


def accepted(p: Tensor, q: Tensor, numbers: Tensor) -> Tensor:
    """Which tokens of probability p at the target and q at the draft are kept: bool.

    A product instead of p / q, so that q may underflow; a token that q excludes was not drawn
    from it.
    """
    return (q > 0) & (numbers * q < p)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What the target has over the draft, (p - q)+ [B, V], unnormalised.

    Where that is nothing, p equals q but for rounding, and p it is.
    """
    over = (p - q).clamp(min=0)
    return torch.where(over.sum(-1, keepdim=True) > 0, over, p)
