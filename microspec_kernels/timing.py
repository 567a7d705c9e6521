"""Comparing the speed of things fairly: their rounds are interleaved, and medians are reported.

On a machine that is shared or throttles, two measurements taken minutes apart tell more of the
machine than of the code. So every arm is called once a round, each round begins with another arm,
and whatever slows the machine slows them all.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


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
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for index in range(warmup + rounds):
        shift = index % len(order)
        for name in order[shift:] + order[:shift]:
            if before is not None:
                before(name)
            wait()
            start = time.perf_counter()
            arms[name]()
            wait()
            elapsed = time.perf_counter() - start
            if index >= warmup:
                seconds[name].append(elapsed)
    return {name: percentiles(taken) for name, taken in seconds.items()}


def _nothing() -> None:
    pass
