# SPDX-License-Identifier: Apache-2.0
"""The parts of a measured time, by a clock that the test moves: counted calls, and their order."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.harness import bandwidth, cuda_graphs
from microspec_kernels import timing
from microspec_kernels.timing import Percentiles, percentiles, time_arms


class Clock:
    """Time that only the test moves, and a device that works asynchronously."""

    def __init__(self) -> None:
        self.now, self.queued = 0.0, 0.0

    def perf_counter(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def enqueue(self, seconds: float) -> None:
        self.queued += seconds

    def synchronize(self) -> None:
        self.now, self.queued = self.now + self.queued, 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    simulated = Clock()
    monkeypatch.setattr(timing, "time", simulated)
    monkeypatch.setattr(cuda_graphs, "time", simulated)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return simulated


def test_percentiles_are_times_that_were_measured() -> None:
    assert percentiles([5, 1, 4, 2, 3]) == (1, 3, 4)
    assert percentiles([float(n) for n in range(10, 0, -1)]) == (2, 5, 8)
    assert percentiles([float(n) for n in range(1, 12)]) == (3, 6, 9)
    assert percentiles([7.0]) == (7, 7, 7)


def test_microseconds_are_named_as_columns_are() -> None:
    assert Percentiles(1e-6, 2e-6, 4e-6).in_us() == {"p20_us": 1.0, "p50_us": 2.0, "p80_us": 4.0}


WARMUP = [1000.0, 2000.0]
ROUNDS = [5.0, 1.0, 4.0, 2.0, 3.0]


def spending(clock: Clock, factor: float) -> Callable[[], None]:
    """Return a call that takes ``factor`` times a round's time, one round after the other."""
    taken = iter([*WARMUP, *ROUNDS])
    return lambda: clock.spend(factor * next(taken))


def test_an_arm_s_time_is_that_of_its_own_measured_calls(clock: Clock) -> None:
    arms = {"a": spending(clock, 1), "b": spending(clock, 10)}
    found = time_arms(arms, len(ROUNDS), len(WARMUP), before=lambda name: clock.spend(0.125))
    assert found == {"a": (1, 3, 4), "b": (10, 30, 40)}


def test_a_replay_s_time_is_divided_by_its_calls(clock: Clock) -> None:
    replays = {
        "one": cuda_graphs.Replay(spending(clock, 1), 1, None, captured=False),
        "four": cuda_graphs.Replay(spending(clock, 8), 4, None, captured=False),
    }
    found = cuda_graphs.time_rounds(replays, len(ROUNDS), len(WARMUP))
    assert found == {"one": ROUNDS, "four": [2 * took for took in ROUNDS]}, "round by round"
    replays = {"again": cuda_graphs.Replay(spending(clock, 6), 3, None, captured=False)}
    assert cuda_graphs.time_replays(replays, len(ROUNDS), len(WARMUP)) == {"again": (2, 6, 8)}


Called = list[str]


def of_time_arms(names: str, rounds: int) -> Called:
    order: Called = []
    time_arms({name: lambda name=name: order.append(name) for name in names}, rounds, 0)
    return order


def of_time_rounds(names: str, rounds: int) -> Called:
    order: Called = []
    replays = {
        name: cuda_graphs.Replay(lambda name=name: order.append(name), 1, None, captured=False)
        for name in names
    }
    cuda_graphs.time_rounds(replays, rounds, 0)
    return order


@pytest.mark.parametrize("timed", [of_time_arms, of_time_rounds])
@pytest.mark.parametrize("names", ["ab", "abc", "abcde"])
def test_every_arm_is_called_once_a_round_and_each_as_often_at_every_place(
    clock: Clock, timed: Callable[[str, int], Called], names: str
) -> None:
    """A delay of the first or the last call of a round thus delays all arms."""
    order = timed(names, 2 * len(names))
    rounds = [order[at : at + len(names)] for at in range(0, len(order), len(names))]
    assert len(rounds) == 2 * len(names)
    for one in rounds:
        assert sorted(one) == list(names)
    for place in range(len(names)):
        assert Counter(one[place] for one in rounds) == dict.fromkeys(names, 2), place


def test_before_is_told_which_arm_is_next(clock: Clock) -> None:
    order: Called = []
    arms = {name: lambda name=name: order.append(name) for name in "ab"}
    time_arms(arms, 2, 1, before=lambda name: order.append(f"before {name}"))
    assert order == [word for name in "abbaab" for word in (f"before {name}", name)]


def on_a_gpu(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a GPU: events count device time in ms, and a launch returns before its end."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock.now + clock.queued

        def elapsed_time(self, other: "Event") -> float:
            return (other.at - self.at) * 1e3

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", clock.synchronize)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: clock.enqueue(cycles))


def test_on_a_gpu_a_call_is_timed_until_the_device_is_done(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(clock, monkeypatch)
    arms = {"a": lambda: clock.enqueue(3), "b": lambda: (clock.spend(1), clock.enqueue(4))}
    found = time_arms(arms, 3, before=lambda name: clock.enqueue(100))
    assert found == {"a": (3, 3, 3), "b": (5, 5, 5)}


@pytest.mark.parametrize("captured", [True, False])
def test_a_replay_is_timed_by_the_device(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, captured: bool
) -> None:
    """A graph is enqueued while the device still waits; that does not hide calls from Python."""
    on_a_gpu(clock, monkeypatch)
    slept: list[int] = []
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    replay = cuda_graphs.Replay(lambda: clock.enqueue(6), 3, None, captured=captured)
    assert cuda_graphs.time_rounds({"a": replay}, 2, 1) == {"a": [2.0, 2.0]}
    assert slept == [cuda_graphs.WAIT] * (3 if captured else 0)


def test_a_line_of_figures() -> None:
    copy = bandwidth.CopyBandwidth("cpu", 1024)
    times = {"arm": Percentiles(2e-6, 4e-6, 8e-6), copy.NAME: Percentiles(0.1, 2 * 1024 / 1.5e9, 9)}
    found = bandwidth.row({"K": 5}, "cold", "arm", times, 3000, copy)
    assert found == {
        "K": 5, "situation": "cold", "arm": "arm", "p20_us": 2.0, "p50_us": 4.0, "p80_us": 8.0,
        "bytes": 3000, "floor_us": pytest.approx(2.0), "over_floor": pytest.approx(2.0),
        "copy_GBps": pytest.approx(1.5),
    }  # fmt: skip


@pytest.mark.parametrize("of_a_call", [1000, 25_000_000, 90_000_000])
def test_cold_operands_left_the_cache_before_their_turn_comes(
    monkeypatch: pytest.MonkeyPatch, of_a_call: int
) -> None:
    cache = 50 << 20
    monkeypatch.setattr(cuda_graphs, "l2_bytes", lambda: cache)
    between_two_uses = (cuda_graphs.sets_for_cold(of_a_call) - 1) * of_a_call
    assert between_two_uses > 3 * cache
    assert between_two_uses < 6 * cache + of_a_call, "and not many more: they are made and kept"


class Graphs:
    """Record PyTorch's calls for streams and graphs, and the arms' calls between them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[Any] = []
        self.current = "default"
        stream = SimpleNamespace(wait_stream=lambda other: self.said.append(f"own waits: {other}"))
        default = SimpleNamespace(
            wait_stream=lambda other: self.said.append(f"default waits: {other is stream}")
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.said.append("synchronize"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: default)
        monkeypatch.setattr(torch.cuda, "stream", self.within)
        monkeypatch.setattr(torch.cuda, "graph", self.within)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", self.graph)
        monkeypatch.setattr(cuda_graphs, "streams", lambda: (stream, None))
        self.default = default

    def graph(self, keep_graph: bool) -> Any:
        return SimpleNamespace(
            keep=keep_graph,
            replay=lambda: self.said.append("replay"),
            instantiate=lambda: self.said.append("instantiate"),
        )

    def within(self, what: Any, stream: Any = None) -> Any:
        said, inside = self.said, "capture" if stream is not None else "stream"

        class Within:
            def __enter__(self) -> None:
                said.append(inside)

            def __exit__(self, *_: object) -> None:
                said.append(f"end of {inside}")

        return Within()


@pytest.mark.parametrize("edited", [False, True])
def test_a_graph_holds_as_many_calls_as_it_says(
    monkeypatch: pytest.MonkeyPatch, edited: bool
) -> None:
    graphs, numbers = Graphs(monkeypatch), iter(range(100))

    def call() -> int:
        number = next(numbers)
        graphs.said.append(number)
        return number

    edit = (lambda graph: graphs.said.append(f"edit, kept {graph.keep}")) if edited else None
    replay = cuda_graphs.capture(call, 3, edit)
    assert graphs.said == [
        f"own waits: {graphs.default}", "stream", 0, 1, 2, "end of stream", "default waits: True",
        "synchronize", "capture", 3, 4, 5, "end of capture",
        *(["edit, kept True", "instantiate"] if edited else []),
    ]  # fmt: skip
    assert (replay.calls, replay.last, replay.captured) == (3, 5, True)
    replay.run()
    assert graphs.said[-1] == "replay"


def test_calls_from_python_are_made_one_by_one() -> None:
    numbers = iter(range(100))
    replay = cuda_graphs.uncaptured(lambda: next(numbers), 4)
    assert (replay.calls, replay.last, replay.captured) == (4, 0, False)
    replay.run()
    assert next(numbers) == 5


def test_nothing_to_time() -> None:
    for arms, rounds, got in (({}, 3, "0 and 3"), ({"a": print}, 0, "1 and 0")):
        with pytest.raises(ValueError, match=f"time_arms: expected arms and rounds, got {got}"):
            time_arms(arms, rounds)
