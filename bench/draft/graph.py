# SPDX-License-Identifier: Apache-2.0
"""One EAGLE-2 draft, from the tokens just accepted to the tree, for capture in one CUDA graph.

It makes the same tree as `microspec_kernels.speculative.tree.grow`, and no value goes to the host.
Every size is fixed: each level has K_BEST nodes, and each node K_BEST candidates.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.harness.draft_layer import DraftLayer
from bench.harness.sizes import K_BEST
from bench.ops.head_peers import PADDED

from .heads import DraftHead

RANGE = "draft: "  # stands in front of a part's name in a profile


@dataclass(frozen=True)
class DraftShape:
    """The sizes of a draft.

    Attributes:
        depth: calls of the head; the first has one row.
        size: nodes beside the root.
        accepted: tokens of the step before, which the layer reads first, as text.
    """

    depth: int = 6
    size: int = 60
    accepted: int = 4

    @property
    def drafted(self) -> int:
        """Count the tokens that the draft puts into its cache."""
        return self.accepted + (self.depth - 1) * K_BEST


def span(part: str) -> AbstractContextManager[object]:
    """Name what is called inside, for a profile. It costs a graph nothing."""
    return torch.profiler.record_function(RANGE + part)


class CapturableDraft:
    """Drafts one tree when called: (tokens, parents, ancestor_mask) as in `speculative.tree.Tree`.

    Args:
        without: parts to replace by constants. The difference between the graphs with and without
            a part is what the part costs in its place.
        serial: whether everything waits for the gather.
    """

    def __init__(
        self,
        layer: DraftLayer,
        head: DraftHead,
        shape: DraftShape,
        without: frozenset[str] = frozenset(),
        serial: bool = False,
    ) -> None:
        self.layer, self.head, self.shape = layer, head, shape
        self.without, self.serial = without, serial
        weight = layer.embedding
        device, (vocab_size, dim) = weight.device, weight.shape
        self.text = torch.randint(vocab_size, (shape.accepted,), device=device)
        self.text_features = torch.randn(shape.accepted, dim, device=device).bfloat16()
        # The layer writes its features here. A head that needs rows padded to 16 reads them here.
        self.features = torch.zeros(shape.accepted + PADDED, dim, device=device).bfloat16()
        hidden = torch.full((shape.accepted, shape.drafted), -torch.inf, device=device)
        self.text_mask = hidden.triu(1)
        self.itself = torch.full((K_BEST, K_BEST), -torch.inf, device=device).fill_diagonal_(0)
        self.root = self.text[-1:]
        self.constants = {
            n: (
                torch.randn(n, K_BEST, device=device).log_softmax(-1),
                torch.randint(vocab_size, (n, K_BEST), device=device),
            )
            for n in (1, K_BEST)
        }
        self.zero = torch.zeros(1, dtype=torch.int64, device=device)
        self.certain = torch.zeros(1, device=device)

    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        shape, head = self.shape, self.head
        if "vocabulary" not in self.without:
            with span("vocabulary"):
                head.update()
        if "gather" not in self.without:
            with span("gather"):
                head.gather()
                if self.serial:
                    head.join()
        self._layer(self.text, self.text_features, 0, 0, self.text_mask)
        head.join()
        at, n = shape.accepted - 1, 1  # the frontier: its first row in `features`, and its size
        mask, frontier, path = self.text_mask[-1:], self.zero, self.certain
        pool = [(self.root, self.zero, self.certain)]
        drafted = 1
        for level in range(shape.depth):
            value, tokens = self._head(at, n)
            last = level == shape.depth - 1
            if "tree" in self.without:
                if not last:
                    first = shape.accepted + level * K_BEST
                    fixed = self.text_mask[-1:].expand(K_BEST, -1)
                    parents = self.features[:K_BEST]
                    self._layer(tokens[0], parents, first, shape.accepted + level, fixed)
                    at, n = 0, K_BEST
                continue
            with span("tree"):
                # Rounding must not raise a path's score, or a node would outrank its parent.
                scores = (path[:, None] + value.clamp(max=0)).flatten()
                tokens = tokens.flatten()
                pool.append((tokens, frontier[:, None].expand(-1, K_BEST).flatten(), scores))
                if last:
                    break
                path, best = scores.topk(K_BEST)
                rows, tokens = best // K_BEST, tokens[best]
                parents = self.features[at + rows]
                frontier, drafted = drafted + best, drafted + len(scores)
                mask = mask[rows]
                first = shape.accepted + level * K_BEST
                mask[:, first : first + K_BEST] = self.itself
            self._layer(tokens, parents, first, shape.accepted + level, mask)
            at, n = 0, K_BEST
        if "tree" in self.without:
            return self.root, self.zero, self.certain
        with span("tree"):
            return self._cut(*(torch.cat(column) for column in zip(*pool, strict=True)))

    def _layer(self, tokens: Tensor, parents: Tensor, first: int, depth: int, mask: Tensor) -> None:
        if "layer" not in self.without:
            with span("layer"):
                out = self.features[: len(tokens)]
                self.layer(tokens, parents, first, depth, mask, out)

    def _head(self, at: int, n: int) -> tuple[Tensor, Tensor]:
        if "head" in self.without:
            return self.constants[n]
        with span("head"):
            return self.head.best(self.features[at : at + PADDED], n)

    def _cut(self, tokens: Tensor, parents: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        """Return the root and the best nodes, each behind its parent, as `tree.best_nodes` does."""
        order = scores.sort(descending=True, stable=True).indices
        chosen = order[: self.shape.size + 1].sort().values
        count = len(chosen)
        place = torch.zeros_like(parents)
        place[chosen] = torch.arange(count, device=chosen.device)
        parents = place[parents[chosen]]
        ancestor_mask = torch.eye(count, dtype=torch.bool, device=chosen.device)
        ancestor = parents
        for _ in range(self.shape.depth):
            ancestor_mask.scatter_(1, ancestor[:, None], True)
            ancestor = parents[ancestor]
        return tokens[chosen], parents, ancestor_mask
