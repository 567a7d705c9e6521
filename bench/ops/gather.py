# SPDX-License-Identifier: Apache-2.0
"""What does gather_rows_, which brings a packed slab up to date, cost in a step?

python -m bench.ops.gather [--quick] [--device cpu|cuda] [--out DIR]
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import microspec_kernels as mk
from bench.harness import models, options
from bench.harness.bandwidth import CopyBandwidth, row
from bench.harness.cuda_graphs import Replay, capture, sets_for_cold, time_replays
from bench.harness.inputs import id_sets, make_weight
from bench.harness.sizes import CAPACITY, CHANGED, QUICK_SHORT_ROUNDS, ROUNDS, SHORT_ROUNDS
from bench.harness.supported import DTYPE_NAMES, quantised
from microspec_kernels import reference
from microspec_kernels.timing import time_arms

VOCAB_SIZE, DIM = models.MODELS[models.DEFAULT].vocab_size, models.MODELS[models.DEFAULT].dim
QUICK_DIM = 512  # on a CPU
CHANGED_ON_GPU = (CHANGED, CAPACITY)


def on_cpu(quick: bool) -> list[dict[str, Any]]:
    """Time calls from Python."""
    dim = QUICK_DIM if quick else DIM
    vocab = mk.ActiveVocab(VOCAB_SIZE, CAPACITY)
    vocab.update(torch.randint(VOCAB_SIZE, (2 * CAPACITY,)))
    weight = make_weight(VOCAB_SIZE, dim)
    slabs = {
        "bf16": mk.WeightSlab(weight, vocab, buffers=1),
        "to int8": mk.WeightSlab(weight, vocab, buffers=1, dtype=torch.int8),
    }
    changed = {name: iter(torch.randint(VOCAB_SIZE, (10**4, CHANGED))) for name in slabs}

    def gather(name: str) -> None:
        slab = slabs[name]
        wanted = slab.ids.clone()
        wanted[0, :CHANGED] = next(changed[name])
        mk.gather_rows_(slab.rows, slab.ids, weight, wanted, slab_scale=slab.scale)

    arms = {
        f"gather_rows_, {CHANGED} changed rows of {dim}, {name}": lambda name=name: gather(name)
        for name in slabs
    }
    times = time_arms(arms, QUICK_SHORT_ROUNDS if quick else SHORT_ROUNDS)
    shape = {"V": VOCAB_SIZE, "D": dim, "K": CAPACITY}
    return [{**shape, "arm": name, **time.in_us()} for name, time in times.items()]


class Gather:
    """Wants ``changed`` other tokens in the same slots at every call, so that just their rows come.

    The wanted ids rotate, and the rows that one rotation reads exceed the caches several times.
    """

    def __init__(self, weight: Tensor, capacity: int, changed: int, dtype: torch.dtype) -> None:
        vocab_size, dim = weight.shape
        self.weight = weight
        count = max(2, min(sets_for_cold(changed * dim * 2), vocab_size // changed - 1))
        device = weight.device.type
        slots = torch.randperm(capacity, device=device)[:changed]
        rest = id_sets(vocab_size, capacity, 1, device)[0]
        self.wanted = []
        for fresh in id_sets(vocab_size, changed, count, device):
            ids = rest.clone()
            ids[slots] = fresh
            self.wanted.append(ids)
        self.changed = changed
        self.slab = torch.zeros(capacity, dim, dtype=dtype, device=device)
        self.held = torch.full_like(rest, -1)
        self.scale = torch.zeros(capacity, device=device) if dtype != weight.dtype else None
        self.turn = itertools.cycle(self.wanted)
        self.slots = slots

    def __call__(self) -> None:
        mk.gather_rows_(self.slab, self.held, self.weight, next(self.turn), slab_scale=self.scale)

    def check(self, replay: Replay) -> None:
        """Check that a replay leaves the rows of the last wanted ids, bit for bit."""
        self.slab.view(torch.uint8).fill_(77)
        self.turn = itertools.cycle(self.wanted)  # a graph, too, begins with the first ids
        replay.run()
        ids = self.wanted[-1]
        want, scale = self.weight[ids[self.slots].long()].cpu(), None
        if self.scale is not None:
            want, scale = reference.quantise_rows(want, self.slab.dtype)
        as_bytes = self.slab.view(torch.uint8)[self.slots].cpu()
        assert torch.equal(as_bytes, want.view(torch.uint8)), "gather_rows_"
        if self.scale is not None and scale is not None:
            assert torch.equal(self.scale[self.slots].cpu(), scale), "gather_rows_: scale"
        assert torch.equal(self.held, ids), "gather_rows_: slab_ids"

    def bytes(self) -> int:
        """Count the bytes of rows read and written, and of both lists of ids."""
        row_bytes = self.weight.size(1) * (self.weight.element_size() + self.slab.element_size())
        return self.changed * row_bytes + 2 * self.held.nbytes


def plain_copy(weight: Tensor, changed: int, calls: int) -> Callable[[], object]:
    """Return a ``copy_`` of as many adjacent rows, from another place at every call."""
    target = torch.empty(changed, weight.size(1), dtype=weight.dtype, device=weight.device)
    starts = itertools.cycle(range(min(calls, weight.size(0) // changed)))

    def copy() -> None:
        first = next(starts) * changed
        target.copy_(weight[first : first + changed])

    return copy


def arm_name(changed: int, dtype: torch.dtype) -> str:
    """Name the arm that gathers into a slab of `dtype`, as gather.csv has it."""
    return f"gather_rows_ of {changed} rows, bf16 to {DTYPE_NAMES[dtype]}"


def on_gpu(
    quick: bool = False, rounds: int = ROUNDS, only: str = "", device: str = "cuda"
) -> list[dict[str, Any]]:
    """Time replays of graphs, beside a plain copy of the same bytes."""
    model = models.SMALL if quick else models.MODELS[models.DEFAULT]
    vocab_size, dim = model.vocab_size, model.dim
    weight = make_weight(vocab_size, dim, device)
    replays: dict[str, Replay] = {}
    least: dict[str, int] = {}
    for changed in CHANGED_ON_GPU:
        for dtype in (weight.dtype, *quantised()):
            name = arm_name(changed, dtype)
            if only in name:
                gather = Gather(weight, CAPACITY, changed, dtype)
                replays[name] = capture(gather, len(gather.wanted))
                gather.check(replays[name])
                least[name] = gather.bytes()
        name = f"copy_ of {changed} rows that lie side by side"
        if only in name:
            calls = sets_for_cold(changed * dim * 2)
            replays[name] = capture(plain_copy(weight, changed, calls), calls)
            least[name] = 2 * changed * dim * 2
    bandwidth = CopyBandwidth(device)
    times = time_replays({**replays, bandwidth.NAME: bandwidth.replay()}, rounds)
    shape = {"V": vocab_size, "D": dim, "K": CAPACITY}
    return [row(shape, "cold", name, times, least[name], bandwidth) for name in replays]


if __name__ == "__main__":
    options.run(__doc__, "gather", on_cpu, on_gpu)
