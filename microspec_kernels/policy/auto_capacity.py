# SPDX-License-Identifier: Apache-2.0
"""Choose K again while texts are written: ``capacity="auto"``."""

import logging
from dataclasses import replace

import torch
from torch import Tensor

from .._host_copy import HostCopy
from .capacity import SIZES, StepCosts, choose_capacity, explain, judge_capacity
from .coverage_curve import CoverageCurve, misses_of_sizes
from .defaults import TEXTS_PER_FLOOR
from .learned_lists import LearnedLists

# A change of K costs the rows of new slots and a floor set anew: a gain below this is not worth it.
WORTH = 1.01

logger = logging.getLogger(__name__)


class AutoCapacity:
    """The K that gives the most tokens per second, from a step's costs and the measured coverage.

    K begins as expected of broad traffic and is chosen again for every
    :data:`~.TEXTS_PER_FLOOR` requests that begin. It never waits for the device: a choice knows
    what had reached the host. Each change is one line in the log.

    Args:
        costs: what a step reads.
        lists: the learned lists that fill the vocabulary, with the verdicts on the texts.
        largest: number of slots that there are.
        has_floor: see :class:`CoverageCurve`.

    Attributes:
        choice: the newest choice. Its capacity is the number of rows if no K beats the dense head.
    """

    def __init__(
        self,
        costs: StepCosts,
        lists: LearnedLists,
        *,
        largest: int,
        has_floor: bool,
    ) -> None:
        self.costs, self._largest = costs, largest
        sizes = sorted({min(size, largest) for size in (*SIZES, largest)})
        self._curve = CoverageCurve(lists, sizes, has_floor=has_floor)
        self._lists = lists
        self.choice = choose_capacity(costs, largest=largest)
        self.reset()

    def reset(self) -> None:
        """Forget what was measured. K stays. Call when the verdicts begin again at zero."""
        self._curve.reset()
        self._begun, self._counted = 0, (0, 0)  # requests; verdicts before the limit's last change
        self._most_running = 0
        self._host_copy = HostCopy()  # drop the pending copy: its totals are from before

    @property
    def limit(self) -> int:
        """K: number of slots to use."""
        return min(self.choice.capacity, self._largest)

    def running(self, num_requests: int) -> None:
        """Take the number of requests in a step: the next choice is for the most since the last."""
        self._most_running = max(self._most_running, num_requests)

    def begin(self, request: int, prompt: Tensor) -> None:
        """Begin a request, and choose K again if it is time. Call before the lists begin it.

        Args:
            request, prompt: as for :meth:`LearnedLists.begin`.
        """
        self._curve.begin(request, prompt)
        self._begun += 1
        if self._begun % TEXTS_PER_FLOOR:
            return
        totals = torch.cat((self._curve.misses, self._lists.tally.verdicts.sum(1)))
        newest = self._host_copy.poll(totals)
        if newest is not None:
            *curve, hits, misses = newest.tolist()
            self._choose(curve, hits, misses)

    def _choose(self, curve: list[int], hits: int, misses: int) -> None:
        if self._most_running:
            self.costs = replace(self.costs, num_requests=self._most_running)
            self._most_running = 0
        costs, limit, sizes = self.costs, self.limit, self._curve.sizes
        before = self._counted
        of_size = misses_of_sizes(
            sizes,
            curve,
            at=limit,
            hits=hits - before[0],
            misses=misses - before[1],
            num_requests=costs.num_sharing,
        )
        choice = choose_capacity(costs, of_size.__getitem__, largest=self._largest)
        stays = self.choice  # the dense head's figures do not change
        if stays.capacity == limit:
            stays = judge_capacity(costs, limit, of_size[limit])
        if choice.speedup > WORTH * stays.speedup:
            self._counted = hits, misses
            logger.info("microspec: %s", explain(costs, choice, measured=True))
        else:
            choice = stays
        self.choice = choice
