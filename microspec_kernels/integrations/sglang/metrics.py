# SPDX-License-Identifier: Apache-2.0
"""Report counters as SGLang does: a log line at SGLang's interval, and Prometheus."""

import logging

from microspec_kernels.engine import EngineHead
from microspec_kernels.integrations.hooks.metrics import Report

logger = logging.getLogger(__name__)


class Metrics:
    """The metrics of one draft. Only the first rank of a tensor-parallel group reports them."""

    def __init__(self, head: EngineHead) -> None:
        from sglang.srt.runtime_context import get_observability, get_parallel

        observability = get_observability()
        self._head, self._tells = head, get_parallel().tp_rank == 0
        self._interval, self._steps = observability.decode_log_interval, 0
        self._report = Report(head, logger, bool(observability.enable_metrics))

    def tick(self) -> None:
        """Report if the interval has passed. Call in every step.

        Never waits for the device: on a GPU each report shows the counters of one interval ago.
        """
        self._steps += 1
        if self._tells and self._steps % self._interval == 0:
            stats = self._head.stats()
            if stats is not None:
                self._report.tell(stats)
