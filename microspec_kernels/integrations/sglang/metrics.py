# SPDX-License-Identifier: Apache-2.0
"""Report counters as SGLang does: a log line at SGLang's interval, and Prometheus."""

import logging

from microspec_kernels.engine import EngineHead
from microspec_kernels.integrations.hooks import HeadChoice
from microspec_kernels.integrations.hooks.metrics import Report

logger = logging.getLogger(__name__)


class Metrics:
    """The metrics of one draft.

    Of the ranks that share its vocabulary, those of one attention, only the first reports them.

    Args:
        head: the head whose counters are reported.
        choice: counts the steps of SGLang's own head.
    """

    def __init__(self, head: EngineHead, choice: HeadChoice) -> None:
        from sglang.srt.runtime_context import get_observability, get_parallel, get_serving

        observability, parallel = get_observability(), get_parallel()
        labels = {
            "model_name": get_serving().served_model_name,
            "engine": str(parallel.attn_dp_rank),
        }
        self._head, self._choice = head, choice
        self._tells = parallel.attn_tp_rank == 0
        self._interval, self._steps = observability.decode_log_interval, 0
        self._report = Report(head, logger, labels if observability.enable_metrics else None)

    def tick(self) -> None:
        """Report if the interval has passed. Call in every step.

        Never waits for the device: on a GPU each report shows the counters of one interval ago.
        """
        self._steps += 1
        if self._tells and self._steps % self._interval == 0:
            stats = self._head.stats()
            if stats is not None:
                self._report.tell(stats._replace(dense_steps=self._choice.dense_steps))
