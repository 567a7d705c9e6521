# SPDX-License-Identifier: Apache-2.0
"""Known times that replace a benchmark's measurements in tests."""

from collections.abc import Callable, Mapping
from typing import Any

from microspec_kernels.timing import Percentiles


class KnownTimes:
    """A stand-in for ``time_arms``: it calls every arm once, with different times for each."""

    def __init__(self) -> None:
        self.reported: list[tuple[Any, Percentiles]] = []

    def __call__(
        self,
        arms: Mapping[Any, Callable[[], object]],
        rounds: int = 31,
        warmup: int = 3,
        before: Callable[[Any], object] | None = None,
    ) -> dict[Any, Percentiles]:
        assert rounds > 0
        taken = {}
        for name, call in arms.items():
            if before is not None:
                before(name)
            call()
            first = 1e-6 * (10 * len(self.reported) + 1)
            taken[name] = Percentiles(first, first + 1e-6, first + 3e-6)
            self.reported.append((name, taken[name]))
        return taken

    def columns(self) -> list[tuple[Any, list[float]]]:
        """Return each arm in the order of the calls, with its microseconds p20, p50 and p80."""
        return [(name, [seconds * 1e6 for seconds in times]) for name, times in self.reported]


COLUMNS = ("p20_us", "p50_us", "p80_us")
