"""Figures in vLLM's own way: a line in the log at its interval, and Prometheus.

vLLM carries no figures of plugins from a worker to the process that serves /metrics. They are there
nevertheless where it was started with PROMETHEUS_MULTIPROC_DIR: each process then writes its own
into that folder.
"""

import logging
import time
from typing import Any

import torch

from microspec_kernels.engine import EngineHead
from microspec_kernels.integrations.hooks.metrics import Report

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM shows its own loggers only


class Metrics:
    """Of one drafter. reports: only one rank of a tensor-parallel group does."""

    def __init__(self, head: EngineHead, reports: bool) -> None:
        import vllm.envs

        self._head, self._reports = head, reports
        self._interval = vllm.envs.VLLM_LOG_STATS_INTERVAL
        self._due = time.monotonic() + self._interval
        self._asked = False
        self._report = Report(head, logger, prometheus=True)

    def tick(self) -> None:
        """In every step: reports what is due. Never waits for the device."""
        if not self._reports or time.monotonic() < self._due:
            return
        figures = self._head.figures()
        self._asked = not self._asked
        if self._asked or figures is None:
            return  # their copy has only begun: the next step finds them
        self._due = time.monotonic() + self._interval
        self._report.tell(figures)

    def restart(self) -> None:
        """The head's figures begin anew."""
        self._report.restart()

    def newest(self) -> dict[str, Any]:
        """Since the start; waits for the device."""
        self._head.figures()
        if self._head.vocab.device.type == "cuda":
            torch.cuda.synchronize(self._head.vocab.device)
        figures = self._head.figures()
        assert figures is not None
        return {**figures._asdict(), "coverage": figures.coverage}
