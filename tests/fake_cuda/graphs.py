# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs as lists of calls."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .memory import FakeCudaError, storage_of
from .streams import Event, Stream, StreamContext, device

Call = tuple[Callable[..., Any], Sequence[Any], dict[str, Any], list[Tensor]]


def tensors_in(value: object) -> list[Tensor]:
    """Return the tensors in an argument or result, also inside lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


class Capture:
    """The calls of a capture, and what each of its streams has done or waited for.

    ``done[a][b]`` is the number of the last call on stream b that stream a comes after.
    """

    def __init__(self, origin: Stream) -> None:
        self.origin = origin
        self.done: dict[Stream, dict[Stream, int]] = {origin: {}}
        self.calls: list[Call | Event] = []
        self._written: dict[int, tuple[Any, Any]] = {}  # storages, and what was in them before

    def join(self, stream: Stream, done: dict[Stream, int]) -> None:
        """Let what follows on the stream come after ``done``; the stream belongs to the capture."""
        own = self.done.setdefault(stream, {})
        for other, number in done.items():
            own[other] = max(number, own.get(other, 0))

    def keep_what_is_written(self, function: Any, given: list[Tensor], named: Any) -> None:
        """Remember the arguments of a call that may write to them."""
        name = getattr(function, "__name__", "").partition(".")[0]
        written = name.startswith(("__i", "__set")) or (name[-1:] == "_" != name[-2:-1])
        for tensor in given if written or "out" in named else ():
            storage = storage_of(tensor)
            if storage is not None and storage._cdata not in self._written:
                with torch._C.DisableTorchFunction():
                    self._written[storage._cdata] = storage, storage.clone()

    def add(self, call: Call) -> None:
        if device.current not in self.done:
            name = getattr(call[0], "__name__", str(call[0]))
            raise FakeCudaError(f"{name}: work on a stream outside of the capture")
        self.calls.append(call)
        self.done[device.current][device.current] = len(self.calls)

    def add_wait(self, event: Event, stream: Stream) -> None:
        """Add a node that waits, at each replay, for what the event has recorded then."""
        self.calls.append(event)
        self.done[stream][stream] = len(self.calls)

    def end(self) -> list[Call | Event]:
        waited_for = self.done[self.origin]
        for stream, done in self.done.items():
            if done.get(stream, 0) > waited_for.get(stream, 0):
                raise FakeCudaError("cudaErrorStreamCaptureUnjoined: a stream was not joined")
        for storage, before in self._written.values():
            storage.copy_(before)
        return self.calls


class CUDAGraph:
    def __init__(self, keep_graph: bool = False) -> None:
        self.keep_graph, self.instantiated = keep_graph, False
        self.calls: list[Call | Event] | None = None

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        if device.capture is not None:
            raise FakeCudaError("a capture inside a capture")
        if device.current == device.default:
            raise FakeCudaError("CUDA graphs must be captured on a non-default stream")
        device.capture = Capture(device.current)

    def capture_end(self) -> None:
        if device.capture is None:
            raise FakeCudaError("capture_end: expected a capture, got none")
        capture, device.capture = device.capture, None
        self.calls = capture.end()
        self.instantiated = not self.keep_graph

    def instantiate(self) -> None:
        if self.calls is None:
            raise FakeCudaError("instantiate: expected a captured graph, got none")
        self.instantiated = True

    def raw_cuda_graph(self) -> int:
        if not self.keep_graph or self.calls is None:
            raise FakeCudaError("raw_cuda_graph: expected a captured graph with keep_graph=True")
        return id(self)

    def replay(self) -> None:
        if self.calls is None:
            raise FakeCudaError("replay: expected a captured graph")
        # An event stands for what it has recorded when the graph is launched.
        nodes = [node.reached if isinstance(node, Event) else node for node in self.calls]
        device.run(device.current, lambda: _run(nodes))

    def pool(self) -> tuple[int, int]:
        return (0, 0)

    def reset(self) -> None:
        self.calls = None


def _run(nodes: Sequence[Any]) -> None:
    with torch._C.DisableTorchFunction(), torch.no_grad():
        for node in nodes:
            if len(node) == 2:
                device.finish(node)
                continue
            function, arguments, options, results = node
            again = tensors_in(function(*arguments, **options))
            for old, new in zip(results, again, strict=True):
                if old is not new and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class graph:
    """``torch.cuda.graph``: capture what is called inside."""

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: object = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> None:
        self.cuda_graph, self.context = cuda_graph, StreamContext(stream or Stream())

    def __enter__(self) -> None:
        self.context.__enter__()
        self.cuda_graph.capture_begin()

    def __exit__(self, kind: object, *error: object) -> None:
        self.context.__exit__()
        if kind is None:
            self.cuda_graph.capture_end()
        else:
            device.capture = None
