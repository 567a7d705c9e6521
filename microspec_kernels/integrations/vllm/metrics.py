# SPDX-License-Identifier: Apache-2.0
"""Report counters as vLLM does: a log line at vLLM's interval, and Prometheus.

With PROMETHEUS_MULTIPROC_DIR set, each process writes its own counters into that folder, and the
process that serves /metrics adds them up. Otherwise that process asks for them: see api_metrics.py.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch

from microspec_kernels.engine import EngineHead
from microspec_kernels.integrations.hooks import HeadChoice
from microspec_kernels.integrations.hooks.metrics import Report

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM shows its own loggers only


class Metrics:
    """The metrics of one drafter.

    Args:
        head: the head whose counters are reported.
        choice: counts the steps of vLLM's own head.
        reports: whether this rank reports; only one rank of a tensor-parallel group does.
        labels: the labels of the metrics.
    """

    def __init__(
        self, head: EngineHead, choice: HeadChoice, reports: bool, labels: Mapping[str, str]
    ) -> None:
        import vllm.envs

        self._head, self._choice, self._reports = head, choice, reports
        self._interval = vllm.envs.VLLM_LOG_STATS_INTERVAL
        self._due = time.monotonic() + self._interval
        self._asked = False
        self._report = Report(head, logger, labels)

    def tick(self) -> None:
        """Report if the interval has passed. Call in every step. Never waits for the device."""
        if not self._reports or time.monotonic() < self._due:
            return
        stats = self._head.stats()
        self._asked = not self._asked
        if self._asked or stats is None:
            return  # the copy has only begun: the next step reads it
        self._due = time.monotonic() + self._interval
        self._report.tell(stats._replace(dense_steps=self._choice.dense_steps))

    def reset(self) -> None:
        """Start from zero, after :meth:`EngineHead.reset`."""
        self._report.reset()

    def newest(self, wait: bool) -> dict[str, Any] | None:
        """Return the totals since the start.

        Args:
            wait: whether to wait for the device. Otherwise the totals are those of the previous
                call, and None in the first.
        """
        stats = self._head.stats()
        if wait:
            if self._head.vocab.device.type == "cuda":
                torch.cuda.synchronize(self._head.vocab.device)
            stats = self._head.stats()
        if stats is None:
            return None
        stats = stats._replace(dense_steps=self._choice.dense_steps)
        return {**stats._asdict(), "coverage": stats.coverage}
