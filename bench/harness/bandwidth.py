# SPDX-License-Identifier: Apache-2.0
"""Measure bandwidth beside the arms, and put each arm's time beside the floor that it sets."""

import itertools
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from microspec_kernels.timing import Percentiles

from .cuda_graphs import Replay, capture, l2_bytes


class Bandwidth(Protocol):
    """An arm that moves a known number of bytes in a call."""

    NAME: str
    bytes: int


class CopyBandwidth:
    """Bytes read and written per second by PyTorch's own copy of 16 L2 caches' worth."""

    NAME = "copy"

    def __init__(self, device: str = "cuda", size: int | None = None) -> None:
        size = size or 16 * l2_bytes() or 2**20
        self._source = torch.ones(size, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)
        self.bytes = 2 * size

    def replay(self) -> Replay:
        return capture(lambda: self._target.copy_(self._source), 2)


class ReadBandwidth:
    """Bytes read per second by a sum over a quarter of the weight, another one at every call."""

    NAME = "read"

    def __init__(self, weight: Tensor) -> None:
        quarters = weight.view(torch.float32).chunk(4)
        self._turn = itertools.cycle(quarters)
        self.bytes = quarters[0].nbytes

    def __call__(self) -> Tensor:
        return next(self._turn).sum()


def row(
    shape: dict[str, Any],
    situation: str,
    arm: str,
    times: Mapping[str, Percentiles],
    least: int,
    bandwidth: Bandwidth,
) -> dict[str, Any]:
    """Make one line of figures.

    Args:
        times: of the arm and, from the same rounds, of the bandwidth.
        least: the bytes that a call has to move.
    """
    time = times[arm]
    per_second = bandwidth.bytes / times[bandwidth.NAME].p50
    floor = least / per_second
    return {
        **shape,
        "situation": situation,
        "arm": arm,
        **time.in_us(),
        "bytes": least,
        "floor_us": floor * 1e6,
        "over_floor": time.p50 / floor,
        f"{bandwidth.NAME}_GBps": per_second / 1e9,
    }
