"""EAGLE-2's dynamic draft tree (arXiv 2406.16858): grown by probability, cut to the best nodes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import KVCache
from .draft import Draft
from .heads import Head
from .stats import Clock


@dataclass(frozen=True)
class TreeShape:
    """`depth` calls of the draft's head, each with at most `top_k` rows and `top_k` candidates a
    row; `size` is the most nodes verified, the root aside."""

    depth: int
    top_k: int
    size: int


@dataclass(frozen=True)
class Tree:
    """Node 0 is the root, the newest token of the text; a parent comes before its children.

    `tokens` int64 [n] and `parents` int64 [n] (the root's is itself) lie on the device;
    `lineage` bool [n, n] says which nodes are ancestors of a node, or itself.
    """

    tokens: Tensor
    parents: Tensor
    lineage: Tensor

    def walk(self, choices: list[int]) -> list[int]:
        """The path from the root along the target's choices [n], one after each node.

        The nodes on it were drafted right (the root by definition); the choice after the last is
        the bonus token.
        """
        edges = zip(self.parents.tolist()[1:], self.tokens.tolist()[1:], strict=True)
        children = {edge: node for node, edge in enumerate(edges, start=1)}
        path = [0]
        while (child := children.get((path[-1], choices[path[-1]]))) is not None:
            path.append(child)
        return path


def grow(
    root: Tensor,
    feature: Tensor,
    draft: Draft,
    cache: KVCache,
    head: Head,
    shape: TreeShape,
    clock: Clock,
) -> Tree:
    """Draft a tree below the token `root` int64 [1], whose draft feature is `feature` [1, D].

    Each level asks the head what follows the frontier, and the best `top_k` of the answers, by the
    log-probability of the whole path, are the next frontier. All answers of all levels compete
    for the tree. What the draft cached for nodes rests on guessed features and is dropped again.
    """
    base = cache.length
    # The frontier: nodes (as places in the pool) whose features are known and whose children are
    # not. The pool: every node there is, in the order found, the root first.
    frontier, features = root.new_zeros(1), feature
    path_scores = torch.zeros(1, device=root.device)
    lineage = torch.ones(1, 0, dtype=torch.bool, device=root.device)
    pool_tokens, pool_parents, pool_scores = [root], [frontier], [path_scores]
    drafted = 1
    for level in range(shape.depth):
        with clock("head"):
            log_probs, tokens = head.topk(features, shape.top_k)
        with clock("tree"):
            # A head that knows few tokens pads with (-inf, -1); and a path's score must not rise
            # by rounding, or a node would outrank its parent.
            scores = path_scores[:, None] + log_probs.clamp(max=0)
            rows, columns = ((tokens >= 0) & (scores > -torch.inf)).nonzero(as_tuple=True)
            scores, tokens = scores[rows, columns], tokens[rows, columns]
            pool_tokens.append(tokens)
            pool_parents.append(frontier[rows])
            pool_scores.append(scores)
            best = ranked(scores)[: shape.top_k]
            if level == shape.depth - 1 or len(best) == 0:
                break
            rows, tokens, path_scores = rows[best], tokens[best], scores[best]
            frontier, drafted = drafted + best, drafted + len(scores)
            itself = torch.eye(len(best), dtype=torch.bool, device=root.device)
            lineage = torch.cat((lineage[rows], itself), dim=1)
        with clock("draft_layer"):
            features = draft.step(tokens, features[rows], lineage, cache)
    cache.keep(base, [])
    with clock("tree"):
        return best_nodes(
            torch.cat(pool_tokens), torch.cat(pool_parents), torch.cat(pool_scores), shape.size
        )


def best_nodes(tokens: Tensor, parents: Tensor, scores: Tensor, size: int) -> Tree:
    """The tree of the root (node 0) and the `size` best others.

    A parent comes before its children and scores no less. So in a stable order by score an
    ancestor comes first, even at equal scores, and the best nodes always form a tree.
    """
    chosen = ranked(scores)[: size + 1].sort().values
    place = torch.zeros_like(parents)
    place[chosen] = torch.arange(len(chosen), device=chosen.device)
    parents = place[parents[chosen]]
    lineage = torch.eye(len(chosen), dtype=torch.bool, device=chosen.device)
    ancestor = parents
    # One generation a turn; the root is its own parent, so it is where every line ends.
    while bool(ancestor.any()):
        lineage.scatter_(1, ancestor[:, None], True)
        ancestor = parents[ancestor]
    lineage[:, 0] = True
    return Tree(tokens[chosen], parents, lineage)


def ranked(scores: Tensor) -> Tensor:
    """Indices [n] of fp32 scores [n], falling; equal scores in their order."""
    return scores.sort(descending=True, stable=True).indices
