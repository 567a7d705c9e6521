# SPDX-License-Identifier: Apache-2.0
"""Which head drafts the steps of an engine: the active vocabulary or the engine's own LM head."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from microspec_kernels.engine import DenseSteps, EngineHead
from microspec_kernels.engine.slots import costs_of_head
from microspec_kernels.policy import StepCosts


def choice_of(
    head: EngineHead,
    costs: StepCosts | None,
    weight: Tensor,
    *,
    alone: bool,
    logger: logging.Logger,
) -> "HeadChoice":
    """Return the choice that a head's settings ask for.

    Args:
        head: the head over the active vocabulary.
        costs: what a step reads; None: cost decides nothing.
        weight: the draft's LM head.
        alone: whether no other rank shares it. Ranks see the coverage at different times, and a
            step must have one head, so then the number of requests alone decides.
        logger: a logger that the engine shows.
    """
    settings, by_cost = head.settings, None
    if settings.dense_by_cost and costs is not None:
        costs = costs_of_head(costs, settings, weight, shared=head.vocab.num_groups == 1)
        by_cost = DenseSteps(costs, lambda: head.limit, head.stats if alone else None, logger)
    return HeadChoice(settings.dense_steps is not False, by_cost, logger)


class HeadChoice:
    """The head of each step, chosen on the host before the draft's graphs are replayed.

    Args:
        allowed: whether any step may use the engine's own head.
        by_cost: chooses by coverage and load; None: only requests that have opted out count.
        logger: a logger that the engine shows.

    Attributes:
        dense: whether the engine's own head drafts. During capture it tells which graph this is.
        dense_steps: number of steps that it drafted.
        switch: called with :attr:`dense` when it changes, to choose among captured graphs.
    """

    def __init__(self, allowed: bool, by_cost: DenseSteps | None, logger: logging.Logger) -> None:
        self._allowed, self._by_cost, self._logger = allowed, by_cost, logger
        self._failed = False
        self.switch: Callable[[bool], None] = lambda dense: None
        self.dense, self.dense_steps = False, 0

    @property
    def allowed(self) -> bool:
        """Whether steps may use the engine's own head, so that graphs are captured with both."""
        return self._allowed

    def step(self, num_requests: int, opted_out: bool) -> None:
        """Choose the head of the next step. Call once a step, after it was observed.

        Args:
            num_requests: requests in the step.
            opted_out: whether one of them has opted out.
        """
        if self._by_cost is not None:
            self._by_cost.step(num_requests)
        self.use(opted_out)
        self.dense_steps += self.dense

    def use(self, opted_out: bool) -> None:
        """Choose the head for another batch of the same step."""
        by_cost = self._by_cost is not None and self._by_cost.dense
        self._set(self._allowed and (self._failed or by_cost or opted_out))

    def forbid(self, reason: str) -> None:
        """Let no step use the engine's own head, and log why."""
        if self._allowed:
            self._allowed, self._by_cost = False, None
            self._logger.info("MicroSpec: no step drafts with the engine's own LM head: %s", reason)

    def fail(self) -> None:
        """Use the engine's own head from now on, if steps may."""
        self._failed = True
        self.use(False)

    def reset(self) -> None:
        """Reset to the active vocabulary and no tokens. Call after :meth:`EngineHead.reset`."""
        if self._by_cost is not None:
            self._by_cost.reset()
        self.dense_steps = 0
        self.use(False)

    @contextmanager
    def fixed(self, dense: bool) -> Iterator[None]:
        """Draft with one head for as long as this lasts, to capture it."""
        before = self.dense
        self._set(dense)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, dense: bool) -> None:
        if dense != self.dense:
            self.dense = dense
            self.switch(dense)
