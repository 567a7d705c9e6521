# SPDX-License-Identifier: Apache-2.0
"""Compare the speed of several arms: interleave their rounds and report percentiles.

On a machine that is shared or throttles, two measurements taken minutes apart say more about the
machine than about the code. Therefore each round calls every arm once and begins with another arm,
so that a slow phase of the machine slows all arms.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch

Name = TypeVar("Name")


class Percentiles(NamedTuple):
    """Percentiles of the seconds per call, over the rounds."""

    p20: float
    p50: float
    p80: float

    def in_us(self) -> dict[str, float]:
        """Convert to microseconds, keyed by column name: "p20_us", "p50_us" and "p80_us"."""
        return {f"{name}_us": value * 1e6 for name, value in self._asdict().items()}


def percentiles(seconds: list[float]) -> Percentiles:
    """Compute the 20th, 50th and 80th percentile by nearest rank: each is a measured time."""
    ranked = sorted(seconds)
    return Percentiles(*(ranked[math.ceil(p * len(ranked) / 100) - 1] for p in (20, 50, 80)))


def time_arms(
    arms: Mapping[str, Callable[[], object]],
    rounds: int = 31,
    warmup: int = 3,
    before: Callable[[str], object] | None = None,
) -> dict[str, Percentiles]:
    """Time every arm once per round. On a GPU, the time of a call includes the device's work.

    Args:
        arms: the function to call, by the arm's name.
        rounds: number of measured calls of each arm.
        warmup: number of uncounted calls of each arm, which pay for first allocations and caches.
        before: called with the arm's name before each of its calls, and not timed.

    Returns:
        The percentiles in seconds, by the arm's name.

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
    """Measure each name once per round, and begin each round with another name.

    Args:
        names: the names to measure.
        rounds: number of counted rounds.
        warmup: number of uncounted rounds before them.
        seconds_of: measures one call of a name, in seconds.

    Returns:
        The seconds of the counted rounds, in order, by name.
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
