"""Timing on a GPU: many calls in one captured graph, the graphs of all arms replayed in turn.

A call's time is a replay's, by device events, over its calls: with the launches of its kernels as a
graph does them, and without Python or PyTorch, as an engine that captures its step sees it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch

from microspec_kernels.timing import Percentiles, percentiles

WAIT = 1_000_000  # cycles, half a millisecond: a graph of 500 kernels is enqueued by then
Name = TypeVar("Name")
COLD = 4  # caches' worth of data between two uses of the same


@dataclass(frozen=True)
class Replay:
    run: Callable[[], object]
    calls: int
    last: Any  # what the last call gave: the replays of a graph write there
    captured: bool = True


def l2_bytes() -> int:
    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def sets_for_cold(bytes_of_a_call: int) -> int:
    """Of operands to go round, so that none is still in the cache when its turn comes again."""
    return COLD * l2_bytes() // bytes_of_a_call + 2


@cache
def streams() -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """One to capture on, and one for what runs beside it.

    PyTorch has 32 and hands them out in turn: of streams asked for again and again, two may be the
    same, and what should overlap would not.
    """
    return torch.cuda.Stream(), torch.cuda.Stream()


def capture(
    call: Callable[[], object],
    calls: int,
    edit: Callable[[torch.cuda.CUDAGraph], None] | None = None,
) -> Replay:
    """``calls`` of it as one graph. It is called as often before, as capture requires.

    ``edit`` may change the captured graph's nodes before it is instantiated.

    Without a GPU, where only the logic can be tried, the calls are made one by one.
    """
    if not torch.cuda.is_available():
        return uncaptured(call, calls)
    own, _ = streams()
    own.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(own):
        for _ in range(calls):
            call()
    torch.cuda.current_stream().wait_stream(own)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=edit is not None)
    with torch.cuda.graph(graph, stream=own):
        for _ in range(calls):
            last = call()
    if edit is not None:
        edit(graph)
        graph.instantiate()
    return Replay(graph.replay, calls, last)


def uncaptured(call: Callable[[], object], calls: int) -> Replay:
    """``calls`` of it from Python, one by one: what a host that captures nothing pays."""

    def run() -> None:
        for _ in range(calls):
            call()

    return Replay(run, calls, call(), captured=False)


def time_replays(
    replays: Mapping[str, Replay], rounds: int = 31, warmup: int = 3
) -> dict[str, Percentiles]:
    """Seconds a call of each; every round replays all of them, and begins with another."""
    taken = time_rounds(replays, rounds, warmup)
    return {name: percentiles(seconds) for name, seconds in taken.items()}


def time_rounds(
    replays: Mapping[Name, Replay], rounds: int = 31, warmup: int = 3
) -> dict[Name, list[float]]:
    """Seconds a call of each, round by round: what was timed side by side may be subtracted."""
    seconds: dict[Name, list[float]] = {name: [] for name in replays}
    order = list(replays)
    for index in range(warmup + rounds):
        shift = index % len(order)
        for name in order[shift:] + order[:shift]:
            took = _seconds(replays[name])
            if index >= warmup:
                seconds[name].append(took)
    return seconds


def difference(whole: list[float], without: list[float]) -> Percentiles:
    """What was left out of ``without``, from rounds of both."""
    return percentiles([a - b for a, b in zip(whole, without, strict=True)])


def _seconds(replay: Replay) -> float:
    if not torch.cuda.is_available():
        start = time.perf_counter()
        replay.run()
        return (time.perf_counter() - start) / replay.calls
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    # The device waits while the host enqueues the graph, whose launch is then no part of the time;
    # of calls from Python it is.
    if replay.captured:
        torch.cuda._sleep(WAIT)
    began.record()
    replay.run()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended)) / 1e3 / replay.calls


class CopyBandwidth:
    """Bytes read and written a second by PyTorch's own copy of a gigabyte, as one of the arms."""

    NAME = "copy"

    def __init__(self, device: str = "cuda", size: int = 2**30) -> None:
        self._source = torch.ones(size, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)

    def replay(self) -> Replay:
        return capture(lambda: self._target.copy_(self._source), 2)

    def of(self, times: Mapping[str, Percentiles]) -> float:
        return 2 * self._source.nbytes / times[self.NAME].p50


def row(
    shape: dict[str, Any], situation: str, arm: str, time: Percentiles, least: int, copy: float
) -> dict[str, Any]:
    """One line of figures. ``least``: the bytes a call has to move; ``copy``: bytes a second."""
    floor = least / copy
    return {
        **shape,
        "situation": situation,
        "arm": arm,
        "p20_us": time.p20 * 1e6,
        "p50_us": time.p50 * 1e6,
        "p80_us": time.p80 * 1e6,
        "bytes": least,
        "floor_us": floor * 1e6,
        "over_floor": time.p50 / floor,
        "copy_GBps": copy / 1e9,
    }
