# SPDX-License-Identifier: Apache-2.0
"""`Timeline`: a clock that tells when each part of each step ran, and on which stream."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from .stats import Clock


class Span(NamedTuple):
    """When a part ran, in milliseconds from the beginning of its step.

    stream: "main stream" or "side stream" of a GPU, or "CPU".
    """

    part: str
    stream: str
    start: float
    end: float


class Timeline(Clock):
    """A clock whose parts become spans of steps. It waits for a GPU only in `steps`.

    A part inside another one on the same stream, such as a CPU's gather, cuts it in two.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, {}, on=True)
        self._steps: list[tuple[Any, Any, list[tuple[str, str, Any, Any]]]] = []
        self._spans: list[tuple[str, str, Any, Any]] = []
        self._open: dict[str, tuple[str, Any]] = {}
        self._main = "main stream" if device.type == "cuda" else "CPU"

    @contextmanager
    def step(self) -> Iterator[None]:
        self._spans, begin = [], self._mark()
        yield
        self._steps.append((begin, self._mark(), self._spans))
        self._spans = []  # of what happens between steps

    @contextmanager
    def __call__(self, part: str, stream: Any = None) -> Iterator[None]:
        lane = self._main if stream is None else "side stream"
        outer = self._open.get(lane)
        self._close(lane, stream)
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(self._device))
        self._open[lane] = part, self._mark(stream)
        yield
        self._close(lane, stream)
        if outer is not None:
            self._open[lane] = outer[0], self._mark(stream)

    def steps(self) -> list[tuple[float, list[Span]]]:
        """Return the length of each step in milliseconds, and its spans in order."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return [
            (
                self._between(begin, end),
                [
                    Span(part, lane, self._between(begin, first), self._between(begin, last))
                    for part, lane, first, last in spans
                ],
            )
            for begin, end, spans in self._steps
        ]

    def _close(self, lane: str, stream: Any) -> None:
        if lane in self._open:
            part, first = self._open.pop(lane)
            self._spans.append((part, lane, first, self._mark(stream)))

    def _mark(self, stream: Any = None) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream or torch.cuda.current_stream(self._device))
        return event

    def _between(self, begin: Any, end: Any) -> float:
        if self._device.type != "cuda":
            return float(end - begin) * 1e3
        return float(begin.elapsed_time(end))
