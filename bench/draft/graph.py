# SPDX-License-Identifier: Apache-2.0
"""One EAGLE-2 draft, from the tokens just accepted to the tree, for capture in one CUDA graph.

It makes the same tree as `microspec_kernels.speculative.tree.grow`, and no value goes to the host.
Every size is fixed: each level has K_BEST nodes, and each node K_BEST candidates.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

import microspec_kernels as mk
from bench.harness.draft_layer import DraftLayer
from bench.harness.sizes import K_BEST
from bench.ops.head_peers import PADDED
from microspec_kernels.speculative.tree import TreeShape, new_pool

from .heads import Best, DraftHead

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
    """Drafts one tree when called, and returns what `tree_cut` does.

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
                torch.zeros(n, device=device),
            )
            for n in (1, K_BEST)
        }

    def __call__(self) -> tuple[Tensor, ...]:
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
        sizes = TreeShape(shape.depth, K_BEST, shape.size)
        pool = new_pool(1, sizes, K_BEST, self.root.device)
        mask, frontier, begin = self.text_mask[-1:], None, 0
        for level in range(shape.depth):
            best = self._head(at, n)
            last = level == shape.depth - 1
            if "tree" in self.without:
                if not last:
                    first = shape.accepted + level * K_BEST
                    fixed = self.text_mask[-1:].expand(K_BEST, -1)
                    parents = self.features[:K_BEST]
                    self._layer(best[1][0], parents, first, shape.accepted + level, fixed)
                    at, n = 0, K_BEST
                continue
            with span("tree"):
                frontier, tokens, rows = mk.tree_grow_(
                    *pool, *best, K_BEST, begin=begin, frontier=frontier
                )
                if last:
                    break
                begin += n * K_BEST
                parents = self.features[at + rows[0]]
                mask = mask[rows[0]]
                first = shape.accepted + level * K_BEST
                mask[:, first : first + K_BEST] = self.itself
            self._layer(tokens[0], parents, first, shape.accepted + level, mask)
            at, n = 0, K_BEST
        if "tree" in self.without:
            return (self.root,)
        with span("tree"):
            return mk.tree_cut(self.root, *pool, shape.size)

    def _layer(self, tokens: Tensor, parents: Tensor, first: int, depth: int, mask: Tensor) -> None:
        if "layer" not in self.without:
            with span("layer"):
                out = self.features[: len(tokens)]
                self.layer(tokens, parents, first, depth, mask, out)

    def _head(self, at: int, n: int) -> Best:
        if "head" in self.without:
            return self.constants[n]
        with span("head"):
            return self.head.best(self.features[at : at + PADDED], n)
