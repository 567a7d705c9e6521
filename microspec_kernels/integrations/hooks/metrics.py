# SPDX-License-Identifier: Apache-2.0
"""Report a draft vocabulary's counters in an engine's log and in Prometheus."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from microspec_kernels.engine import EngineHead, EngineStats

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge


LABELS = ("model_name", "engine")
"""Labels of the metrics, as vLLM's own have them: the served model and the data-parallel rank."""


class Report:
    """Log and export the counters accumulated since the previous report.

    Args:
        head: the head whose counters are reported.
        logger: a logger that the engine shows.
        labels: values of :data:`LABELS` to export to Prometheus, too; None: do not export. In
            Prometheus' multi-process mode the metrics appear beside the engine's own.
    """

    def __init__(
        self, head: EngineHead, logger: logging.Logger, labels: Mapping[str, str] | None
    ) -> None:
        self._head, self._logger, self._labels = head, logger, labels
        self._last = EngineStats(0, 0, 0)

    def tell(self, stats: EngineStats) -> None:
        """Report the difference to the previous totals; do nothing if no token is new."""
        new = EngineStats(*(a - b for a, b in zip(stats, self._last, strict=True)))
        if new.coverage is None:
            return
        last, self._last = self._last, stats
        self._logger.info(
            "MicroSpec metrics: Coverage: %.1f%%, Covered: %d tokens, Not covered: %d tokens, "
            "Active: %d of %d tokens, Dense steps: %d",
            100 * new.coverage,
            new.hits,
            new.misses,
            stats.active,
            self._head.vocab.ids.numel(),
            new.dense_steps,
        )
        if self._labels is not None:
            export(stats, last, self._labels)

    def reset(self) -> None:
        """Start from zero, after :meth:`EngineHead.reset`."""
        self._last = EngineStats(0, 0, 0)


def export(stats: EngineStats, last: EngineStats, labels: Mapping[str, str]) -> None:
    """Add to Prometheus' metrics of this process.

    Args:
        stats: the totals now.
        last: the totals that were exported before.
        labels: values of :data:`LABELS`.
    """
    counters, active = _prometheus()
    for name, counter in counters.items():
        counter.labels(**labels).inc(getattr(stats, name) - getattr(last, name))
    active.labels(**labels).set(stats.active)


@cache
def _prometheus() -> "tuple[dict[str, Counter], Gauge]":
    # Import late: prometheus_client checks for its multi-process mode at import.
    from prometheus_client import Counter, Gauge

    counters = {
        "hits": Counter(
            "microspec:covered_tokens", "Tokens that the draft could have proposed.", LABELS
        ),
        "misses": Counter(
            "microspec:uncovered_tokens", "Tokens that it could not have proposed.", LABELS
        ),
        "dense_steps": Counter(
            "microspec:dense_steps", "Steps that the engine's own LM head drafted.", LABELS
        ),
    }
    # Sum over live processes: engines side by side have separate vocabularies.
    active = Gauge(
        "microspec:active_tokens", "Tokens now active.", LABELS, multiprocess_mode="livesum"
    )
    return counters, active
