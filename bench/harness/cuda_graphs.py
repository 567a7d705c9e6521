# SPDX-License-Identifier: Apache-2.0
"""Time on a GPU: capture many calls in one graph for each arm, and replay all graphs in turn.

The time of a call is that of a replay, by device events, divided by its calls. It includes the
launches of its kernels as a graph does them, and neither Python nor PyTorch: this is what an
engine that captures its step sees.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch

from microspec_kernels.timing import Percentiles, interleaved, percentiles

from .sizes import ROUNDS

WAIT = 1_000_000  # cycles, half a millisecond: enough to enqueue a graph of 500 kernels
Name = TypeVar("Name")
COLD = 4  # caches' worth of data between two uses of the same operand


@dataclass(frozen=True)
class Replay:
    run: Callable[[], object]
    calls: int
    last: Any  # the result of the last call: each replay of a graph writes there
    captured: bool = True


def l2_bytes() -> int:
    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def sets_for_cold(bytes_of_a_call: int) -> int:
    """Count the operands to use in turn so that each has left the cache when its turn comes."""
    return COLD * l2_bytes() // bytes_of_a_call + 2


@cache
def streams() -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Return the stream that captures, and one for work that runs beside it.

    They are made once: PyTorch hands out 32 streams in turn, so two that are requested again and
    again may be the same one, and nothing would overlap.
    """
    return torch.cuda.Stream(), torch.cuda.Stream()


def capture(
    call: Callable[[], object],
    calls: int,
    edit: Callable[[torch.cuda.CUDAGraph], None] | None = None,
) -> Replay:
    """Capture `calls` calls as one graph, after as many ordinary calls, which capture requires.

    Without a GPU, where only the logic can be tried, the calls are made one by one.

    Args:
        edit: may change the nodes of the captured graph before it is instantiated.
    """
    if not torch.cuda.is_available():
        return uncaptured(call, calls)
    stream, _ = streams()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(calls):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=edit is not None)
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            last = call()
    if edit is not None:
        edit(graph)
        graph.instantiate()
    return Replay(graph.replay, calls, last)


def uncaptured(call: Callable[[], object], calls: int) -> Replay:
    """Make `calls` calls from Python, one by one: what a host that captures nothing pays."""

    def run() -> None:
        for _ in range(calls):
            call()

    return Replay(run, calls, call(), captured=False)


def time_replays(
    replays: Mapping[Name, Replay], rounds: int = ROUNDS, warmup: int = 3
) -> dict[Name, Percentiles]:
    """Return the seconds of a call of each; the rounds are interleaved."""
    taken = time_rounds(replays, rounds, warmup)
    return {name: percentiles(seconds) for name, seconds in taken.items()}


def time_rounds(
    replays: Mapping[Name, Replay], rounds: int = ROUNDS, warmup: int = 3
) -> dict[Name, list[float]]:
    """Return the seconds of a call of each, round by round, so that they may be subtracted."""
    return interleaved(list(replays), rounds, warmup, lambda name: _seconds(replays[name]))


def difference(whole: list[float], without: list[float]) -> Percentiles:
    """Return what `without` leaves out of `whole`, from the same rounds."""
    return percentiles([a - b for a, b in zip(whole, without, strict=True)])


def _seconds(replay: Replay) -> float:
    if not torch.cuda.is_available():
        start = time.perf_counter()
        replay.run()
        return (time.perf_counter() - start) / replay.calls
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    # The device waits while the host enqueues the graph, so the launch of a graph does not count.
    # Calls from Python do not wait: their launches count.
    if replay.captured:
        torch.cuda._sleep(WAIT)
    began.record()
    replay.run()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended)) / 1e3 / replay.calls
