# SPDX-License-Identifier: Apache-2.0
"""Report counters as vLLM does: a log line at vLLM's interval, and Prometheus.

vLLM does not carry a plugin's counters from a worker to the process that serves /metrics. With
PROMETHEUS_MULTIPROC_DIR set they still arrive, because each process then writes its own counters
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
    """The metrics of one drafter.

    Args:
        head: the head whose counters are reported.
        reports: whether this rank reports; only one rank of a tensor-parallel group does.
    """

    def __init__(self, head: EngineHead, reports: bool) -> None:
        import vllm.envs

        self._head, self._reports = head, reports
        self._interval = vllm.envs.VLLM_LOG_STATS_INTERVAL
        self._due = time.monotonic() + self._interval
        self._asked = False
        self._report = Report(head, logger, prometheus=True)

    def tick(self) -> None:
        """Report if the interval has passed. Call in every step. Never waits for the device."""
        if not self._reports or time.monotonic() < self._due:
            return
        stats = self._head.stats()
        self._asked = not self._asked
        if self._asked or stats is None:
            return  # the copy has only begun: the next step reads it
        self._due = time.monotonic() + self._interval
        self._report.tell(stats)

    def reset(self) -> None:
        """Start from zero, after :meth:`EngineHead.reset`."""
        self._report.reset()

    def newest(self) -> dict[str, Any]:
        """Return the totals since the start. Waits for the device."""
        self._head.stats()
        if self._head.vocab.device.type == "cuda":
            torch.cuda.synchronize(self._head.vocab.device)
        stats = self._head.stats()
        assert stats is not None
        return {**stats._asdict(), "coverage": stats.coverage}
