"""The heads of a draft, each with what it has to do about its vocabulary, for draft_step.py.

What a draft learns from the step before is the same for all: the ids of its tree and the target's
own candidates, some of them new. They come from a list on the device, by a counter on the device,
so that one captured graph sees other tokens at every replay, evictions included.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import microspec_kernels as mk

from .cuda_graphs import streams
from .head_arms import K_BEST, Arm, check
from .head_peers import PADDED, STATIC, careful, compiled, usual
from .models import Model

Best = tuple[Tensor, Tensor]  # log-probabilities fp32 and token ids, [n, K_BEST]


@dataclass(frozen=True)
class Observed:
    """What a verified step shows: ``tokens`` ids, ``new`` of them not in the vocabulary."""

    # A tree of 60 and its root, and the target's best three at each of these nodes, less what is
    # among them twice.
    tokens: int = 240
    new: int = 128


class Head:
    """One that keeps no vocabulary: all of the weight, or fixed rows of it."""

    def __init__(
        self, model: Model, weight: Tensor, ids: Tensor | None = None, compile_too: bool = False
    ) -> None:
        self.weight, self.ids, self.softcap = weight, ids, model.softcap
        job = usual if ids is None else careful
        self.job: Any = compiled(job) if compile_too else job

    def update(self) -> None:
        """Let the vocabulary know what was observed."""

    def gather(self) -> None:
        """Begin to bring rows to where the head reads them, beside the current stream."""

    def join(self) -> None:
        """Let the current stream wait for that."""

    def best(self, features: Tensor, n: int) -> Best:
        """Of the first n of padded features [16, D]."""
        if self.ids is None:
            value, tokens = self.job(features[:n], self.weight, None, self.softcap)
        else:
            value, tokens = self.job(features, self.weight, self.ids, n, self.softcap)
        return value.float(), tokens

    def operands(self) -> dict[str, Any]:
        """For the reference, as of now."""
        device, count = self.weight.device, len(self.weight)
        every = torch.arange(count, dtype=torch.int32, device=device)
        ids = every if self.ids is None else self.ids
        return {"weight": self.weight, "active_ids": ids, "packed": self.ids is not None}

    def validate(self, name: str, allowed: float = 1e-4) -> None:
        """``best`` of random features against fp64."""
        features = torch.randn(PADDED, self.weight.size(-1), device=self.weight.device).bfloat16()
        self.join()
        operands = {**self.operands(), "softcap": self.softcap}
        arm = Arm(
            lambda: self.best(features, K_BEST), operands, 0, rounded=not isinstance(self, Sparse)
        )
        check(name, arm, features[:K_BEST], arm.call(), allowed)


def static(model: Model, weight: Tensor, compile_too: bool = False) -> Head:
    """FR-Spec's: the most frequent tokens, which lie all over the vocabulary, packed once."""
    vocab_size = len(weight)
    ids = torch.randperm(vocab_size, device=weight.device)[: min(STATIC, vocab_size)].int()
    return Head(model, weight.index_select(0, ids), ids, compile_too)


class Shown:
    """The observed tokens of one step after the other, on the device.

    As many steps as bring twice the vocabulary's capacity in new tokens: when their turn comes
    again they have been evicted. The other tokens of a step are the same each time.
    """

    def __init__(self, vocab_size: int, capacity: int, observed: Observed, device: str) -> None:
        self.steps = -(-2 * capacity // observed.new)
        known = observed.tokens - observed.new
        drawn = torch.randperm(vocab_size, device=device)[: known + self.steps * observed.new]
        self.new = drawn[known:].view(self.steps, observed.new)
        self.tokens = torch.cat((drawn[:known].expand(self.steps, -1), self.new), dim=1)
        self.turn = torch.zeros(1, dtype=torch.int64, device=device)

    def next(self, which: Tensor) -> Tensor:
        """The next row of ``which``, a tensor with one row a step."""
        row = which.index_select(0, self.turn)[0]
        self.turn.add_(1).remainder_(self.steps)
        return row


class NanoSpec(Head):
    """A packed slab for PyTorch's kernels. Its update, on the host in that code, is free here.

    The new rows are copied on a stream of their own, as they are meant to be there.
    """

    def __init__(
        self,
        model: Model,
        weight: Tensor,
        capacity: int,
        observed: Observed,
        compile_too: bool = False,
    ) -> None:
        device = weight.device.type
        rows = weight.new_zeros(capacity, weight.size(1))
        ids = torch.zeros(capacity, dtype=torch.int32, device=device)
        super().__init__(model, rows, ids, compile_too)
        self.full = weight
        self.shown = Shown(len(weight), capacity, observed, device)
        # A token has a slot of its own, shared with those that come a whole capacity later.
        places = torch.arange(self.shown.steps * observed.new, device=device) % capacity
        self.places = places.view(self.shown.steps, observed.new)
        self.side = streams()[1] if device == "cuda" else None
        self.copying = False
        for _ in range(self.shown.steps):
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
        slots = self.places.index_select(0, self.shown.turn)[0]
        tokens = self.shown.next(self.shown.new)
        self.weight.index_copy_(0, slots, self.full.index_select(0, tokens))
        assert self.ids is not None
        self.ids.index_copy_(0, slots, tokens.int())

    def join(self) -> None:
        # A graph in which nothing is copied must not wait for a stream outside of it.
        if self.side is not None and self.copying:
            torch.cuda.current_stream().wait_stream(self.side)
        self.copying = False


class Sparse(Head):
    """Ours, its vocabulary full. With ``slab`` (its dtype) packed, else rows where they lie."""

    def __init__(
        self,
        model: Model,
        weight: Tensor,
        capacity: int,
        observed: Observed,
        slab: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, weight)
        device = weight.device.type
        self.vocab = mk.ActiveVocab(len(weight), capacity, device=device)
        self.shown = Shown(len(weight), capacity, observed, device)
        # Every graph has a slab of its own here, and soon one would get the capture's stream.
        beside = streams()[1] if device == "cuda" else None
        # One buffer: the draft before is over when the rows are copied.
        self.slab = (
            mk.WeightSlab(weight, self.vocab, dtype=slab, buffers=1, stream=beside)
            if slab
            else None
        )
        for _ in range(self.shown.steps):
            self.update()
        self.gather()
        self.join()

    def update(self) -> None:
        self.vocab.update(self.shown.next(self.shown.tokens))

    def gather(self) -> None:
        if self.slab is not None:
            self.slab.refresh()

    def join(self) -> None:
        if self.slab is not None:
            self.slab.wait()

    def best(self, features: Tensor, n: int) -> Best:
        operands = self.operands()
        logits, tokens, logsumexp = mk.sparse_head(
            features[:n],
            operands.pop("weight"),
            operands.pop("active_ids"),
            K_BEST,
            softcap=self.softcap,
            **operands,
        )
        return logits - logsumexp[:, None], tokens

    def operands(self) -> dict[str, Any]:
        if self.slab is None:
            return {"weight": self.weight, "active_ids": self.vocab.ids}
        scale = {} if self.slab.scale is None else {"weight_scale": self.slab.scale}
        return {"weight": self.slab.rows, "active_ids": self.slab.ids, "packed": True, **scale}
