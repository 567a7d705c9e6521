# SPDX-License-Identifier: Apache-2.0
"""Choose between the active vocabulary and the dense LM head while an engine runs."""

import logging
from collections.abc import Callable
from dataclasses import replace

from microspec_kernels.policy import StepCosts, explain
from microspec_kernels.policy.capacity import expected_misses, judge_capacity

from .stats import EngineStats

STEPS = 32
"""Steps between two choices. A choice takes 20 microseconds of the host and a few small kernels."""

# Tokens after which a token's weight in the coverage has halved: traffic that changes shows within
# a few choices, and the error of a coverage of 0.9 is 0.01, half of what MARGIN allows.
HALF_LIFE = 512
# Counted tokens from which on the coverage is that of the traffic, and no longer the expected one.
ENOUGH = 128
# A change of the head costs nothing, but figures near a tie would let it flap.
MARGIN = 1.02


class DenseSteps:
    """Whether the dense LM head gives more tokens per second than the active vocabulary.

    Coverage and the number of requests decide, by the arithmetic of
    :func:`~.policy.choose_capacity`. All figures are on the host already, so a choice never waits
    for the device. While the dense head drafts, :meth:`EngineHead.observe` goes on judging what the
    target writes, so the way back needs no trial. Each change is one line in the log.

    Args:
        costs: what a step reads, with the vocabularies and the slab of the settings.
        capacity: returns K now.
        stats: returns the newest totals that have reached the host; None if the number of requests
            alone decides, as it must where ranks would see the totals at different times.
        logger: a logger that the engine shows.

    Attributes:
        dense: whether the dense head drafts.
    """

    def __init__(
        self,
        costs: StepCosts,
        capacity: Callable[[], int],
        stats: Callable[[], EngineStats | None] | None,
        logger: logging.Logger,
    ) -> None:
        self._costs, self._capacity, self._stats, self._logger = costs, capacity, stats, logger
        self.reset()

    def reset(self) -> None:
        """Reset to the active vocabulary and no tokens. Call after :meth:`EngineHead.reset`."""
        self.dense = False
        self._steps = self._requests = 0
        self._totals = 0, 0  # hits and misses when the coverage was last updated
        self._hits = self._misses = 0.0  # the older, the less they count

    def step(self, num_requests: int) -> bool:
        """Return whether the dense head drafts next. Call once a step, outside capture.

        Args:
            num_requests: requests in the step. The next choice is for their mean since the last.
        """
        self._steps += 1
        self._requests += num_requests
        if self._steps == STEPS:
            self._choose(max(1, round(self._requests / STEPS)))
            self._steps = self._requests = 0
        return self.dense

    def _choose(self, num_requests: int) -> None:
        self._update_coverage()
        costs, capacity = replace(self._costs, num_requests=num_requests), self._capacity()
        counted = self._hits + self._misses
        measured = counted >= ENOUGH
        if measured:
            missed = self._misses / counted
        else:
            missed = expected_misses(capacity, costs.num_sharing)
        choice = judge_capacity(costs, capacity, missed)
        dense = choice.speedup < (MARGIN if self.dense else 1 / MARGIN)
        if dense != self.dense:
            self.dense = dense
            head = "the engine's own LM head" if dense else "the active vocabulary"
            said = explain(costs, choice, measured=measured)
            self._logger.info("MicroSpec: %s drafts from now on: %s", head, said)

    def _update_coverage(self) -> None:
        stats = None if self._stats is None else self._stats()
        if stats is None:
            return
        hits, misses = stats.hits - self._totals[0], stats.misses - self._totals[1]
        self._totals = stats.hits, stats.misses
        kept = 0.5 ** ((hits + misses) / HALF_LIFE)
        self._hits, self._misses = kept * self._hits + hits, kept * self._misses + misses
