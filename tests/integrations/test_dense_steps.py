# SPDX-License-Identifier: Apache-2.0
"""The choice between the active vocabulary and the dense head, from figures on the host."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from microspec_kernels.engine import DenseSteps, EngineStats
from microspec_kernels.engine.dense_steps import ENOUGH, HALF_LIFE, MARGIN, STEPS
from microspec_kernels.policy import StepCosts
from microspec_kernels.policy.capacity import expected_misses, judge_capacity

COSTS = StepCosts(target_bytes=15e9, layer_bytes=0.5e9, row_bytes=8192, num_rows=128256)
K = 3072
LOGGER = logging.getLogger("an engine")


class Traffic:
    """A target that writes tokens of which a share is not active."""

    def __init__(self, *, knows_coverage: bool = True, costs: StepCosts = COSTS) -> None:
        self.hits = self.misses = self.asked = 0
        self.capacity = K
        stats = self.stats if knows_coverage else None
        self.choice = DenseSteps(costs, lambda: self.capacity, stats, LOGGER)

    def stats(self) -> EngineStats | None:
        self.asked += 1
        return EngineStats(self.hits, self.misses, K) if self.hits + self.misses else None

    def run(self, missed: float, requests: int = 1, tokens: int = 4, choices: int = 40) -> bool:
        """Run steps until `choices` were made; return whether the dense head drafts then."""
        for _ in range(choices * STEPS):
            new = round(missed * tokens * requests * 1000)
            self.misses += new  # in thousandths of tokens, so that shares are exact
            self.hits += tokens * requests * 1000 - new
            self.choice.step(requests)
        return self.choice.dense


def break_even(requests: int = 1) -> float:
    """Return the share of misses at which both heads are as fast."""
    low, high = 0.0, 1.0
    costs = replace(COSTS, num_requests=requests)
    for _ in range(50):
        middle = (low + high) / 2
        faster = judge_capacity(costs, K, middle).speedup > 1
        low, high = (middle, high) if faster else (low, middle)
    return low


def test_goes_dense_and_comes_back_as_the_traffic_changes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "an engine")
    traffic = Traffic()
    assert not traffic.run(0.1)
    assert traffic.run(0.9), "nothing that the draft needs is active"
    assert not traffic.run(0.1), "observed while the dense head drafted"
    went, returned = caplog.messages
    assert went.startswith("MicroSpec: the engine's own LM head drafts from now on: K = 3072 of")
    assert " 0." in went and "measured" in went and "18.17 GB instead" not in went
    assert returned.startswith("MicroSpec: the active vocabulary drafts from now on: K = 3072 of")


def test_near_a_tie_it_stays_where_it_is() -> None:
    """A difference below the margin changes nothing, from either side."""
    share = break_even()
    for start in (0.0, 1.0):
        traffic = Traffic()
        dense = traffic.run(start)
        assert dense == bool(start)
        for wobble in (-0.005, 0.005, -0.005):
            assert traffic.run(share + wobble) == dense
    speedup = judge_capacity(COSTS, K, share - 0.005).speedup
    assert 1 < speedup < MARGIN


def test_load_alone_decides_where_ranks_would_differ() -> None:
    """The expected coverage of a crowded vocabulary then takes the place of the measured one."""
    traffic = Traffic(knows_coverage=False)
    assert not traffic.run(1.0, requests=8) and traffic.asked == 0
    expected = expected_misses(K, 256)
    assert judge_capacity(replace(COSTS, num_requests=256), K, expected).speedup < 1 / MARGIN
    assert traffic.run(0.0, requests=256, choices=1)
    assert not traffic.run(0.0, requests=8, choices=1)


def test_few_tokens_say_nothing_yet() -> None:
    traffic = Traffic()
    traffic.misses = ENOUGH - 1
    assert not traffic.choice.step(1)
    for _ in range(STEPS):
        traffic.choice.step(1)
    assert traffic.asked == 1 and not traffic.choice.dense
    traffic.misses += 10
    for _ in range(STEPS):
        traffic.choice.step(1)
    assert traffic.choice.dense


def test_old_tokens_fade() -> None:
    """As many tokens as a half-life leave the older ones half their weight."""
    traffic = Traffic()
    for hits, misses, want in ((HALF_LIFE, 0, 0.0), (0, HALF_LIFE, 2 / 3), (0, HALF_LIFE, 6 / 7)):
        traffic.hits += hits
        traffic.misses += misses
        for _ in range(STEPS):
            traffic.choice.step(1)
        seen = traffic.choice
        assert seen._misses / (seen._hits + seen._misses) == pytest.approx(want)


def test_the_capacity_of_the_moment_counts() -> None:
    traffic = Traffic()
    share = break_even()
    assert traffic.run(share + 0.1)
    traffic.capacity = COSTS.num_rows // 2  # reads more, so needs still more coverage
    assert traffic.run(share - 0.05)
    traffic.capacity = 1024
    assert not traffic.run(share - 0.1)


def test_begins_anew() -> None:
    traffic = Traffic()
    traffic.run(0.9)
    traffic.hits = traffic.misses = 0
    traffic.choice.reset()
    assert not traffic.choice.dense
    assert not traffic.run(0.1, choices=1)


def test_figures_are_read_once_in_many_steps() -> None:
    traffic = Traffic()
    for _ in range(10 * STEPS - 1):
        traffic.choice.step(3)
    assert traffic.asked == 9


def test_the_requests_of_all_steps_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def judge(costs: StepCosts, *_: Any) -> Any:
        seen.append(costs.num_requests)
        return judge_capacity(costs, K, 0.1)

    monkeypatch.setattr("microspec_kernels.engine.dense_steps.judge_capacity", judge)
    traffic = Traffic()
    for requests in (1, 9, 0):
        for _ in range(STEPS // 2):
            traffic.choice.step(requests)
        for _ in range(STEPS // 2):
            traffic.choice.step(0 if requests < 9 else 11)
    assert seen == [1, 10, 1]
