"""Comparing the speed of things fairly: their rounds are interleaved, and medians are reported.

On a machine that is shared or throttles, two measurements taken minutes apart tell more of the
machine than of the code. So every arm is called once a round, each round begins with another arm,
and whatever slows the machine slows them all.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch

Name = TypeVar("Name")


class Percentiles(NamedTuple):
    """Seconds a call, over the rounds."""

    p20: float
    p50: float
    p80: float

    def in_us(self) -> dict[str, float]:
        """Microseconds, named as a column of figures is."""
        return {f"{name}_us": value * 1e6 for name, value in self._asdict().items()}


def percentiles(seconds: list[float]) -> Percentiles:
    """The 20th, 50th and 80th percentile, each a time that was measured (nearest rank)."""
    ranked = sorted(seconds)
    return Percentiles(*(ranked[math.ceil(p * len(ranked) / 100) - 1] for p in (20, 50, 80)))


def time_arms(
    arms: Mapping[str, Callable[[], object]],
    rounds: int = 31,
    warmup: int = 3,
    before: Callable[[str], object] | None = None,
) -> dict[str, Percentiles]:
    """Time every arm once a round. On a GPU a call is timed until the device has finished it.

    Args:
        arms: name → what to call.
        rounds: measured calls of each arm.
        warmup: calls of each arm that are not counted, the first allocations and caches among them.
        before: called with the arm's name ahead of every call of it, not timed.

    Raises:
        ValueError: no arms, or no rounds.
    """
    if not arms or rounds < 1:
        raise ValueError(f"time_arms: expected arms and rounds, got {len(arms)} and {rounds}")
    wait = torch.cuda.synchronize if torch.cuda.is_available() else _nothing

    def seconds_of(name: str) -> float:
        if before is not None:
            before(name)
        wait()
        start = time.perf_counter()
        arms[name]()
        wait()
        return time.perf_counter() - start

    taken = interleaved(list(arms), rounds, warmup, seconds_of)
    return {name: percentiles(seconds) for name, seconds in taken.items()}


def interleaved(
    names: Sequence[Name], rounds: int, warmup: int, seconds_of: Callable[[Name], float]
) -> dict[Name, list[float]]:
    """Measure each name once a round, and begin each round with another one.

    Args:
        warmup: rounds ahead of those that count.
        seconds_of: measures one call of a name.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    order = list(names)
    for index in range(warmup + rounds):
        shift = index % len(order)
        for name in order[shift:] + order[:shift]:
            elapsed = seconds_of(name)
            if index >= warmup:
                seconds[name].append(elapsed)
    return seconds


def _nothing() -> None:
    pass
