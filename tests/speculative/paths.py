# SPDX-License-Identifier: Apache-2.0
"""The two paths of the loop: functions that run as they are, and replayed CUDA graphs.

tests/fake_cuda stands for the GPU. Its graphs replay the calls of a capture, and it refuses in a
capture, or at any time where a step may not wait, what a GPU would refuse.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import fake_cuda
import pytest
import torch
from fake_cuda.graphs import CUDAGraph
from fake_cuda.streams import Event

from microspec_kernels.speculative import Batch, Request

# It makes a context, whose value moves a copy of a model or a tensor to where its path runs.
Path = Callable[[], AbstractContextManager[Callable[[Any], Any]]]


class Device:
    """A pretended GPU: the steps that ran on it, their replays of graphs and their waits."""

    def __init__(self) -> None:
        self.steps = self.replays = self.waits = 0


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Pretend a GPU; a step that waits for it other than by an event is an error."""
    device, replay, step = Device(), CUDAGraph.replay, Batch.step

    def counted_replay(graph: Any) -> None:
        device.replays += 1
        replay(graph)

    def counted_wait(event: Event) -> None:
        device.waits += 1

    def strict_step(batch: Batch) -> list[Request]:
        device.steps += bool(batch.requests)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with fake_cuda.installed(), monkeypatch.context() as patch:
        patch.setattr(CUDAGraph, "replay", counted_replay)
        patch.setattr(Event, "synchronize", counted_wait)
        patch.setattr(Batch, "step", strict_step)
        yield device


@contextmanager
def plain() -> Iterator[Callable[[Any], Any]]:
    """Run a batch's steps as they are."""
    yield lambda tensors: tensors


@contextmanager
def captured(monkeypatch: pytest.MonkeyPatch, replays: int = 1) -> Iterator[Callable[[Any], Any]]:
    """Run them as replayed graphs; it is an error if there are fewer replays."""
    with pretended(monkeypatch) as device:
        yield lambda tensors: copy.deepcopy(tensors).to("cuda")
    assert device.replays >= replays


def with_captured(cases: list[tuple[Any, ...]], few: list[tuple[Any, ...]]) -> list[Any]:
    """Return all cases on the plain path and then a few on the captured one, the path first."""
    return [("plain", *case) for case in cases] + [
        pytest.param(
            "captured",
            *case,
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU"),
        )
        for case in few
    ]
