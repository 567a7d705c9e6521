# SPDX-License-Identifier: Apache-2.0
"""Which head drafts: by cost, for requests that opt out, after a failure."""

import logging
from typing import Any

import pytest
import torch

from microspec_kernels.engine import EngineHead, Settings
from microspec_kernels.integrations.hooks import HeadChoice, choice_of
from microspec_kernels.policy import StepCosts

LOGGER = logging.getLogger("an engine")
COSTS = StepCosts(15e9, 0.5e9, 8192, 128256)


class ByCost:
    """Stands in for DenseSteps: the test says what it chooses."""

    def __init__(self) -> None:
        self.dense, self.seen = False, []

    def step(self, num_requests: int) -> bool:
        self.seen.append(num_requests)
        return self.dense

    def reset(self) -> None:
        self.dense = False


def made(allowed: bool = True) -> tuple[HeadChoice, Any, list[bool]]:
    by_cost, switched = ByCost(), []
    choice = HeadChoice(allowed, by_cost, LOGGER)  # type: ignore[arg-type]
    choice.switch = switched.append
    return choice, by_cost, switched


def test_either_reason_is_enough() -> None:
    choice, by_cost, switched = made()
    for cost, opted_out in ((False, False), (True, False), (True, True), (False, True)):
        by_cost.dense = cost
        choice.step(3, opted_out)
        assert choice.dense == (cost or opted_out)
    choice.step(3, False)
    assert switched == [True, False], "only when it changes"
    assert choice.dense_steps == 3 and by_cost.seen == [3] * 5


def test_another_batch_of_a_step_is_not_counted() -> None:
    choice, by_cost, _ = made()
    choice.use(True)
    assert choice.dense and choice.dense_steps == 0 and by_cost.seen == []
    choice.use(False)
    assert not choice.dense


def test_never_where_it_may_not() -> None:
    choice, by_cost, switched = made(allowed=False)
    by_cost.dense = True
    choice.step(1, True)
    choice.fail()
    assert not choice.dense and switched == [] and choice.dense_steps == 0


def test_what_cannot_go_dense_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "an engine")
    choice, _, _ = made()
    choice.forbid("graphs captured without it")
    choice.step(1, True)
    assert not choice.dense
    made(allowed=False)[0].forbid("the user wants it so")
    assert caplog.messages == [
        "MicroSpec: no step drafts with the engine's own LM head: graphs captured without it"
    ]


def test_a_failure_lasts() -> None:
    choice, by_cost, switched = made()
    choice.fail()
    choice.step(1, False)
    assert choice.dense and switched == [True] and not by_cost.dense


def test_capture_fixes_one_head() -> None:
    choice, _, switched = made()
    choice.use(True)
    with choice.fixed(False):
        assert not choice.dense
    assert choice.dense and switched == [True, False, True]


def test_begins_anew() -> None:
    choice, by_cost, _ = made()
    by_cost.dense = True
    choice.step(1, False)
    choice.reset()
    assert not choice.dense and choice.dense_steps == 0 and not by_cost.dense


@pytest.mark.parametrize(
    ("settings", "costs", "by_cost"),
    [
        ({}, COSTS, True),
        ({}, None, False),
        ({"capacity": 8}, COSTS, False),
        ({"capacity": 8, "dense_steps": True}, COSTS, True),
        ({"dense_steps": False}, COSTS, False),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_what_the_settings_ask_for(
    settings: dict[str, Any], costs: StepCosts | None, by_cost: bool, alone: bool
) -> None:
    weight = torch.randn(40, 8)
    head = EngineHead(weight, Settings(**settings))
    choice = choice_of(head, costs, weight, alone=alone, logger=LOGGER)
    assert choice.allowed == settings.get("dense_steps", True)
    assert (choice._by_cost is not None) == by_cost
    if choice._by_cost is not None:
        assert (choice._by_cost._stats is not None) == alone
        assert choice._by_cost._capacity() == head.limit
