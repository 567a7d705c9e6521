"""gather_rows_ on a GPU: what bringing a packed slab up to date costs a step."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import microspec_kernels as mk
from microspec_kernels import reference

from .cuda_graphs import CopyBandwidth, Replay, capture, row, sets_for_cold, time_replays
from .head_arms import NAMES, id_sets, make_weight

CHANGED = (128, 3072)


class Gather:
    """Each call wants ``changed`` other tokens in the same slots: those rows come, no others.

    The wanted ids go round, and in one round the rows read exceed the caches several times.
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
        quantised = dtype != weight.dtype
        self.scale = torch.zeros(capacity, device=device) if quantised else None
        self.turn = itertools.cycle(self.wanted)
        self.slots = slots

    def __call__(self) -> None:
        mk.gather_rows_(self.slab, self.held, self.weight, next(self.turn), slab_scale=self.scale)

    def check(self, replay: Replay) -> None:
        """What a replay leaves: the rows of the last wanted ids, bit for bit."""
        self.slab.view(torch.uint8).fill_(77)
        self.turn = itertools.cycle(self.wanted)  # as a graph does: it begins with the first
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
        """Rows read and written, and both lists of ids."""
        row_bytes = self.weight.size(1) * (self.weight.element_size() + self.slab.element_size())
        return self.changed * row_bytes + 2 * self.held.nbytes


def plain_copy(weight: Tensor, changed: int, calls: int) -> Callable[[], object]:
    """``copy_`` of as many rows that lie side by side, from another place at every call."""
    target = torch.empty(changed, weight.size(1), dtype=weight.dtype, device=weight.device)
    places = itertools.cycle(range(min(calls, weight.size(0) // changed)))

    def copy() -> None:
        first = next(places) * changed
        target.copy_(weight[first : first + changed])

    return copy


def measure(
    quick: bool = False, rounds: int = 31, only: str = "", device: str = "cuda"
) -> list[dict[str, Any]]:
    vocab_size, dim, capacity = (32000, 1024, 3072) if quick else (128256, 4096, 3072)
    weight = make_weight(vocab_size, dim, device)
    replays: dict[str, Replay] = {}
    least: dict[str, int] = {}
    dtypes = {weight.dtype: "bf16", **NAMES}
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        dtypes.pop(torch.float8_e4m3fn)
    for changed in CHANGED:
        for dtype, label in dtypes.items():
            name = f"gather_rows_ of {changed} rows, bf16 to {label}"
            if only in name:
                gather = Gather(weight, capacity, changed, dtype)
                replays[name] = capture(gather, len(gather.wanted))
                gather.check(replays[name])
                least[name] = gather.bytes()
        name = f"copy_ of {changed} rows that lie side by side"
        if only in name:
            calls = sets_for_cold(changed * dim * 2)
            replays[name] = capture(plain_copy(weight, changed, calls), calls)
            least[name] = 2 * changed * dim * 2
    bandwidth = CopyBandwidth(device, 2**30 if device == "cuda" else 2**20)
    times = time_replays({**replays, bandwidth.NAME: bandwidth.replay()}, rounds)
    shape = {"V": vocab_size, "D": dim, "K": capacity}
    copy = bandwidth.of(times)
    return [row(shape, "cold", name, times[name], least[name], copy) for name in replays]
