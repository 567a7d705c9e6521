# SPDX-License-Identifier: Apache-2.0
"""Run functions of fixed shapes, replay them as CUDA graphs, and copy from and to the host."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Graphs:
    """CUDA graphs of functions that read and write fixed tensors and return tensors.

    A function runs eagerly in its first call: kernels are loaded and workspaces allocated then. The
    second call captures it; from then on a call is one replay, which writes over the same results.

    captures: whether to capture at all; if not, every call runs the function.
    """

    def __init__(self, captures: bool) -> None:
        self.captures = captures
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any] | None] = {}

    def run(self, key: Hashable, function: Callable[[], Result]) -> Result:
        """Run the function, whose shapes and tensors are the same for every call with the key."""
        if not self.captures:
            return function()
        if key not in self._graphs:
            self._graphs[key] = None
            return function()
        captured = self._graphs[key]
        if captured is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = graph, function()
            self._graphs[key] = captured
        graph, result = captured
        graph.replay()
        return result

    def forget(self) -> None:
        """Drop all graphs: tensors that they read or write were replaced."""
        self._graphs.clear()


def to_device(values: Sequence[int], device: torch.device) -> Tensor:
    """Return values as int64 [n] on a device. The host does not wait for a GPU."""
    pinned = device.type == "cuda"
    tensor = torch.tensor(values, dtype=torch.int64, device="cpu", pin_memory=pinned)
    return tensor.to(device, non_blocking=True)


class HostRead:
    """The values of a tensor int64 [B, c], on their way to the host."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._arrival = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrival = torch.cuda.current_stream(values.device).record_event()

    def wait(self) -> list[list[int]]:
        """Return the values. On a GPU, wait only for what was enqueued before the read."""
        if self._arrival is not None:
            self._arrival.synchronize()
        rows: list[list[int]] = self._values.tolist()
        return rows
