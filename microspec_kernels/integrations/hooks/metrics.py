# SPDX-License-Identifier: Apache-2.0
"""Report a draft vocabulary's counters in an engine's log and in Prometheus."""

import logging
from functools import cache
from typing import TYPE_CHECKING

from microspec_kernels.engine import EngineHead, EngineStats

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge


class Report:
    """Log and export the counters accumulated since the previous report.

    Args:
        head: the head whose counters are reported.
        logger: a logger that the engine shows.
        prometheus: whether to export to Prometheus, too. In Prometheus' multi-process mode the
            metrics appear beside the engine's own.
    """

    def __init__(self, head: EngineHead, logger: logging.Logger, prometheus: bool) -> None:
        self._head, self._logger, self._prometheus = head, logger, prometheus
        self._last = EngineStats(0, 0, 0)

    def tell(self, stats: EngineStats) -> None:
        """Report the difference to the previous totals; do nothing if no token is new."""
        new = EngineStats(*(a - b for a, b in zip(stats, self._last, strict=True)))
        if new.coverage is None:
            return
        self._last = stats
        self._logger.info(
            "MicroSpec metrics: Coverage: %.1f%%, Covered: %d tokens, Not covered: %d tokens, "
            "Active: %d of %d tokens",
            100 * new.coverage,
            new.hits,
            new.misses,
            stats.active,
            self._head.vocab.ids.numel(),
        )
        if self._prometheus:
            counters, active = _prometheus()
            for name, counter in counters.items():
                counter.inc(getattr(new, name))
            active.set(stats.active)

    def reset(self) -> None:
        """Start from zero, after :meth:`EngineHead.reset`."""
        self._last = EngineStats(0, 0, 0)


@cache
def _prometheus() -> "tuple[dict[str, Counter], Gauge]":
    # Import late: prometheus_client checks for its multi-process mode at import.
    from prometheus_client import Counter, Gauge

    counters = {
        "hits": Counter("microspec:covered_tokens", "Tokens that the draft could have proposed."),
        "misses": Counter("microspec:uncovered_tokens", "Tokens that it could not have proposed."),
    }
    # Sum over live processes: engines side by side have separate vocabularies.
    active = Gauge("microspec:active_tokens", "Tokens now active.", multiprocess_mode="livesum")
    return counters, active
