"""Report counters as SGLang does: a line in the log at its interval, and Prometheus."""

import logging

from microspec_kernels.engine import EngineHead
from microspec_kernels.integrations.hooks.metrics import Report

logger = logging.getLogger(__name__)


class Metrics:
    """Of one draft; of a tensor-parallel group's ranks the first one tells them."""

    def __init__(self, head: EngineHead) -> None:
        from sglang.srt.runtime_context import get_observability, get_parallel

        observability = get_observability()
        self._head, self._tells = head, get_parallel().tp_rank == 0
        self._interval, self._steps = observability.decode_log_interval, 0
        self._report = Report(head, logger, bool(observability.enable_metrics))

    def tick(self) -> None:
        """Report what is due; call in every step. Never waits: a GPU's counters come one late."""
        self._steps += 1
        if self._tells and self._steps % self._interval == 0:
            stats = self._head.stats()
            if stats is not None:
                self._report.tell(stats)
