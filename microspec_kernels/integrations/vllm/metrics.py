"""Figures in vLLM's own way: a line in the log at its interval, and Prometheus.

vLLM carries no figures of plugins from a worker to the process that serves /metrics. They are there
nevertheless where Prometheus runs in its multi-process mode, that is with PROMETHEUS_MULTIPROC_DIR
or several API servers: each process then writes its own into that folder.
"""

import logging
import time
from functools import cache
from typing import Any

import torch

from microspec_kernels.integrations.engine import EngineHead, Figures

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM shows its own loggers only


class Metrics:
    """Of one drafter. reports: only one rank of a tensor-parallel group does."""

    def __init__(self, head: EngineHead, reports: bool) -> None:
        import vllm.envs

        self._head, self._reports = head, reports
        self._interval = vllm.envs.VLLM_LOG_STATS_INTERVAL
        self._due = time.monotonic() + self._interval
        self._asked = False
        self._last = Figures(0, 0, 0, 0)

    def tick(self) -> None:
        """In every step: reports what is due. Never waits for the device."""
        if not self._reports or time.monotonic() < self._due:
            return
        figures = self._head.figures()
        self._asked = not self._asked
        if self._asked or figures is None:
            return  # their copy has only begun: the next step finds them
        self._due = time.monotonic() + self._interval
        self.report(figures)

    def report(self, figures: Figures) -> None:
        """What is new since the last report; nothing where there was no text."""
        new = Figures(*(a - b for a, b in zip(figures, self._last, strict=True)))
        if new.coverage is None:
            return
        self._last = figures
        logger.info(
            "MicroSpec metrics: Coverage: %.1f%%, Covered: %d tokens, Not covered: %d tokens, "
            "Rows entered: %d, Active: %d of %d tokens",
            100 * new.coverage,
            new.hits,
            new.misses,
            new.rows,
            figures.active,
            self._head.vocab.ids.numel(),
        )
        counters, active = _prometheus()
        for name, counter in counters.items():
            counter.inc(getattr(new, name))
        active.set(figures.active)

    def newest(self) -> dict[str, Any]:
        """Since the start; waits for the device."""
        self._head.figures()
        if self._head.vocab.device.type == "cuda":
            torch.cuda.synchronize(self._head.vocab.device)
        figures = self._head.figures()
        assert figures is not None
        return {**figures._asdict(), "coverage": figures.coverage}


@cache
def _prometheus() -> tuple[dict[str, Any], Any]:
    from prometheus_client import Counter, Gauge

    counters = {
        "hits": Counter("microspec:covered_tokens", "Tokens that the draft could have proposed."),
        "misses": Counter("microspec:uncovered_tokens", "Tokens that it could not have proposed."),
        "rows": Counter("microspec:rows_entered", "Rows that entered active vocabularies."),
    }
    # Of each process that lives: engines beside each other have vocabularies of their own.
    active = Gauge("microspec:active_tokens", "Tokens now active.", multiprocess_mode="livesum")
    return counters, active
