# SPDX-License-Identifier: Apache-2.0
"""Streams and events; captures are checked.

All work runs at once, in program order, except on streams that are late: what writes in place
there runs when something waits for it (``Device.late``).
"""

import itertools
import time
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any

import torch

from .memory import CUDA, FakeCudaError

if TYPE_CHECKING:
    from .graphs import Capture

POOL = 32  # streams that PyTorch hands out in turn
_numbers = itertools.count()


class Stream:
    def __init__(self, device: object = None, priority: int = 0) -> None:
        self.device, self.stream_id = CUDA, next(_numbers)
        self.cuda_stream = 0x1000 + self.stream_id % POOL

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.cuda_stream == other.cuda_stream

    def __hash__(self) -> int:
        return hash(self.cuda_stream)

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())

    def wait_event(self, event: "Event") -> None:
        event.wait(self)

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        refuse_in_capture("Stream.query")
        return True

    def synchronize(self) -> None:
        refuse_waiting("Stream.synchronize")

    def __enter__(self) -> None:
        self._before, device.current = device.current, self

    def __exit__(self, *error: object) -> None:
        device.current = self._before


class StreamContext:
    """``torch.cuda.stream``; None changes nothing."""

    def __init__(self, stream: Stream | None) -> None:
        if not (stream is None or isinstance(stream, Stream)):
            raise FakeCudaError(f"stream: expected one of this device, got {stream!r}")
        self.stream = stream

    def __enter__(self) -> None:
        self._before = device.current
        device.current = self.stream or device.current

    def __exit__(self, *error: object) -> None:
        device.current = self._before


class Event:
    """Holds what a stream had done when it recorded the event.

    In a capture that is the calls of the capture. A capture that waits for an ``external`` event,
    which was recorded outside, gets a node that waits at each replay.
    """

    def __init__(self, enable_timing: bool = False, external: bool = False, **options: Any) -> None:
        self.timing, self.external = enable_timing, external
        self.time: float | None = None  # None until it is recorded
        self.capture: Capture | None = None
        self.done: dict[Stream, int] = {}
        self.reached: Reached | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or device.current
        self.time, self.capture, self.reached = time.perf_counter(), None, device.reached(stream)
        if device.capture is not None and stream in device.capture.done:
            if self.external:
                raise FakeCudaError("an external event recorded in a capture: not pretended")
            self.capture, self.done = device.capture, dict(device.capture.done[stream])

    def wait(self, stream: Stream | None = None) -> None:
        stream = stream or device.current
        if self.time is None:
            return
        if self.capture is not device.capture:
            if self.capture is not None:
                raise FakeCudaError("an event of a capture orders nothing outside")
            if device.capture is not None and stream in device.capture.done:
                if not self.external:
                    raise FakeCudaError("cudaErrorStreamCaptureIsolation: an event from outside")
                device.capture.add_wait(self, stream)
                return
        elif self.capture is not None:
            self.capture.join(stream, self.done)
            return
        reached = self.reached
        device.run(stream, lambda: device.finish(reached))

    def query(self) -> bool:
        refuse_in_capture("Event.query")
        return True

    def synchronize(self) -> None:
        refuse_waiting("Event.synchronize")

    def elapsed_time(self, end: "Event") -> float:
        if not (self.timing and end.timing and self.time is not None and end.time is not None):
            raise FakeCudaError("elapsed_time: expected two recorded events with enable_timing")
        return (end.time - self.time) * 1e3


class Device:
    """The state of the pretended device."""

    def __init__(self) -> None:
        self.default = Stream()
        self.default.cuda_stream = 0
        self.current = self.default
        self.capture: Capture | None = None
        self.sync_debug_mode: int | str = "default"
        self.late: Callable[[Stream], bool] = lambda stream: False
        self._queues: dict[Stream, list[tuple[Callable[[], object], Set[int]]]] = {}
        self._finished: dict[Stream, int] = {}

    def capturing(self) -> bool:
        return self.capture is not None and self.current in self.capture.done

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self.sync_debug_mode = ("default", "warn", "error")[mode] if isinstance(mode, int) else mode

    def reached(self, stream: Stream) -> "Reached":
        """Return the stream and the number of its works so far."""
        return stream, self._finished.get(stream, 0) + len(self._queues.get(stream, ()))

    def run(
        self,
        stream: Stream,
        work: Callable[[], object],
        uses: Set[int] = frozenset(),
        writes: Set[int] = frozenset(),
    ) -> None:
        """Run work of a stream: at once, or, if the stream is late, when something waits for it.

        Args:
            uses, writes: the storages that the work uses and writes to.

        Raises:
            FakeCudaError: it would write to what another stream still has to use.
        """
        if self.late(stream):
            self._queues.setdefault(stream, []).append((work, uses))
            return
        for other, queue in self._queues.items():
            if other != stream and any(writes & used for _, used in queue):
                raise FakeCudaError("a race: another stream has yet to use what is written to")
        work()

    def finish(self, reached: "Reached | None") -> None:
        """Run what a stream has left to do of its first works."""
        if reached is None:
            return
        stream, count = reached
        queue = self._queues.get(stream, [])
        with torch._C.DisableTorchFunction(), torch.no_grad():
            while queue and self._finished.get(stream, 0) < count:
                self._finished[stream] = self._finished.get(stream, 0) + 1
                queue.pop(0)[0]()

    def finish_all(self) -> None:
        for stream in list(self._queues):
            self.finish(self.reached(stream))


Reached = tuple[Stream, int]
device = Device()


def refuse_in_capture(what: str) -> None:
    if device.capture is not None:
        raise FakeCudaError(f"cudaErrorStreamCaptureUnsupported: {what} in a capture")


def refuse_waiting(what: str) -> None:
    """Refuse what waits for the device, where nothing may wait for it."""
    refuse_in_capture(what)
    if device.sync_debug_mode == "error":
        raise FakeCudaError(f"called a synchronizing CUDA operation: {what}")
    device.finish_all()
