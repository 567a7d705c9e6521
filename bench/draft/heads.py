# SPDX-License-Identifier: Apache-2.0
"""The heads of a draft, with the work that each does about its vocabulary.

All heads learn the same from the step before: the ids of its tree and the target's candidates, some
of them new. A counter on the device selects them from a list on the device, so that one captured
graph sees other tokens at every replay, and evicts others.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

import microspec_kernels as mk
from bench.harness.cuda_graphs import streams
from bench.harness.head_check import HeadArm, check
from bench.harness.models import Model
from bench.harness.sizes import CHANGED, K_BEST, STATIC
from bench.ops.head_peers import PADDED, compiled, nanospec_topk, plain_topk

# Logits fp32 and token ids [n, K_BEST], and logsumexp fp32 [n], as sparse_head returns them.
Best = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class ObservedTokens:
    """How many ids a verified step shows, and how many of them are not in the vocabulary."""

    # A tree of 60 with its root, and the target's best three at each node, without repetitions.
    tokens: int = 240
    new: int = CHANGED


class DraftHead:
    """A head without a vocabulary to update: over all of the weight, or over fixed rows of it."""

    def __init__(
        self, model: Model, weight: Tensor, ids: Tensor | None = None, compile_too: bool = False
    ) -> None:
        self.weight, self.ids, self.softcap, self.dim = weight, ids, model.softcap, model.dim
        job = plain_topk if ids is None else nanospec_topk
        self.job: Any = compiled(job) if compile_too else job

    def update(self) -> None:
        """Give the observed tokens to the vocabulary."""

    def gather(self) -> None:
        """Start copying new rows into the slab, beside the current stream."""

    def join(self) -> None:
        """Let the current stream wait for the copies."""

    def best(self, features: Tensor, n: int) -> Best:
        """Return the best tokens of the first n rows of padded features [16, D]."""
        if self.ids is None:
            value, tokens = self.job(features[:n], self.weight, None, self.softcap)
        else:
            value, tokens = self.job(features, self.weight, self.ids, n, self.softcap)
        return value.float(), tokens.long(), zeros(n, value.device)

    def operands(self) -> dict[str, Any]:
        """Return the operands that the reference takes for the current vocabulary."""
        device, count = self.weight.device, len(self.weight)
        every = torch.arange(count, dtype=torch.int32, device=device)
        ids = every if self.ids is None else self.ids
        return {"weight": self.weight, "active_ids": ids, "packed": self.ids is not None}

    def validate(self, name: str, allowed: float = 1e-4) -> None:
        """Check ``best`` of random features against fp64."""
        features = torch.randn(PADDED, self.dim, device=self.weight.device).bfloat16()
        self.join()
        operands = {**self.operands(), "softcap": self.softcap}
        rounded = not isinstance(self, SparseDraftHead | Nvfp4DraftHead)  # by PyTorch, to bf16
        arm = HeadArm(lambda: self.best(features, K_BEST), operands, 0, rounded=rounded)
        check(name, arm, features[:K_BEST], arm.call(), allowed)


class Nvfp4DraftHead(DraftHead):
    """All rows in nvfp4's layout with random codes: an engine's quantised copy of the draft's head.

    vLLM's `draft_lm_head_quantization` makes one. It reads 9 / 32 of the bytes of bf16, here by our
    kernel, as the reading decides the time.
    """

    def __init__(self, model: Model, weight: Tensor) -> None:
        rows, dim = weight.shape
        device = weight.device
        codes = torch.randint(256, (rows, dim // 2), dtype=torch.uint8, device=device)
        super().__init__(model, codes.view(torch.float4_e2m1fn_x2))
        self.ids = torch.arange(rows, dtype=torch.int32, device=device)
        # A logit is a sum of D products whose codes have a mean square of 10.
        scale = torch.full((rows, dim // 16), (10 * dim) ** -0.5, device=device)
        self.scale = scale.to(torch.float8_e4m3fn)

    def best(self, features: Tensor, n: int) -> Best:
        return best_of(features[:n], self.operands(), self.softcap)

    def operands(self) -> dict[str, Any]:
        return {"weight": self.weight, "active_ids": self.ids, "weight_scale": self.scale}


@cache
def zeros(count: int, device: torch.device) -> Tensor:
    """Return the constant logsumexp of values that are log-probabilities already."""
    return torch.zeros(count, device=device)


def best_of(hidden: Tensor, operands: dict[str, Any], softcap: float) -> Best:
    """Return the best tokens by our op."""
    return mk.sparse_head(hidden, **operands, k=K_BEST, softcap=softcap)


def static_head(model: Model, weight: Tensor, compile_too: bool = False) -> DraftHead:
    """Make FR-Spec's head: the most frequent tokens, all over the vocabulary, packed once."""
    vocab_size = len(weight)
    ids = torch.randperm(vocab_size, device=weight.device)[: min(STATIC, vocab_size)].int()
    return DraftHead(model, weight.index_select(0, ids), ids, compile_too)


class ObservedSteps:
    """The observed tokens of steps that follow each other, on the device.

    The steps bring twice the vocabulary's capacity in new tokens, so a token has been evicted when
    its turn comes again. The other tokens of a step are the same each time.
    """

    def __init__(
        self, vocab_size: int, capacity: int, observed: ObservedTokens, device: str
    ) -> None:
        self.count = -(-2 * capacity // observed.new)
        repeated = observed.tokens - observed.new
        drawn = torch.randperm(vocab_size, device=device)[: repeated + self.count * observed.new]
        self.new = drawn[repeated:].view(self.count, observed.new)
        self.tokens = torch.cat((drawn[:repeated].expand(self.count, -1), self.new), dim=1)
        self.turn = torch.zeros(1, dtype=torch.int64, device=device)

    def next(self, which: Tensor) -> Tensor:
        """Return the next row of ``which``, a tensor with one row per step."""
        row = which.index_select(0, self.turn)[0]
        self.turn.add_(1).remainder_(self.count)
        return row


class NanoSpecDraftHead(DraftHead):
    """A packed slab for PyTorch's kernels.

    NanoSpec's code updates the vocabulary on the host; here the update is free. The new rows
    are copied on a side stream, as NanoSpec means them to be.
    """

    def __init__(
        self,
        model: Model,
        weight: Tensor,
        capacity: int,
        observed: ObservedTokens,
        compile_too: bool = False,
    ) -> None:
        device = weight.device.type
        rows = weight.new_zeros(capacity, weight.size(1))
        ids = torch.zeros(capacity, dtype=torch.int32, device=device)
        super().__init__(model, rows, ids, compile_too)
        self.full = weight
        self.steps = ObservedSteps(len(weight), capacity, observed, device)
        # Each token has a fixed slot, shared with the tokens that come a whole capacity later.
        slots = torch.arange(self.steps.count * observed.new, device=device) % capacity
        self.slots = slots.view(self.steps.count, observed.new)
        self.side = streams()[1] if device == "cuda" else None
        self.copying = False
        for _ in range(self.steps.count):
            self.gather()
        self.join()

    def gather(self) -> None:
        if self.side is None:
            self._copy()
            return
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            self._copy()
        self.copying = True

    def _copy(self) -> None:
        slots = self.slots.index_select(0, self.steps.turn)[0]
        tokens = self.steps.next(self.steps.new)
        self.weight.index_copy_(0, slots, self.full.index_select(0, tokens))
        assert self.ids is not None
        self.ids.index_copy_(0, slots, tokens.int())

    def join(self) -> None:
        # A graph that copies nothing must not wait for a stream outside of the capture.
        if self.side is not None and self.copying:
            torch.cuda.current_stream().wait_stream(self.side)
        self.copying = False


class SparseDraftHead(DraftHead):
    """Our head with a full vocabulary: packed in a slab of dtype ``slab``, or else indexed."""

    def __init__(
        self,
        model: Model,
        weight: Tensor,
        capacity: int,
        observed: ObservedTokens,
        slab: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, weight)
        device = weight.device.type
        self.vocab = mk.ActiveVocab(len(weight), capacity, device=device)
        self.steps = ObservedSteps(len(weight), capacity, observed, device)
        # Each graph has its slab here. With a new stream each, one would get the capture's stream.
        beside = streams()[1] if device == "cuda" else None
        # One buffer is enough: the previous draft is over when rows are copied.
        self.slab = (
            mk.WeightSlab(weight, self.vocab, dtype=slab, buffers=1, stream=beside)
            if slab
            else None
        )
        for _ in range(self.steps.count):
            self.update()
        self.gather()
        self.join()

    def update(self) -> None:
        self.vocab.update(self.steps.next(self.steps.tokens))

    def gather(self) -> None:
        if self.slab is not None:
            self.slab.refresh()

    def join(self) -> None:
        if self.slab is not None:
            self.slab.wait()

    def best(self, features: Tensor, n: int) -> Best:
        return best_of(features[:n], self.operands(), self.softcap)

    def operands(self) -> dict[str, Any]:
        if self.slab is None:
            return {"weight": self.weight, "active_ids": self.vocab.ids}
        scale = {} if self.slab.scale is None else {"weight_scale": self.slab.scale}
        return {"weight": self.slab.rows, "active_ids": self.slab.ids, "packed": True, **scale}
