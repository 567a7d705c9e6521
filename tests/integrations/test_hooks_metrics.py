# SPDX-License-Identifier: Apache-2.0
"""What the plugins report about a draft's vocabulary."""

import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from microspec_kernels.engine import EngineHead, EngineStats, Settings
from microspec_kernels.integrations.hooks import metrics
from microspec_kernels.integrations.hooks.metrics import Report

logger = logging.getLogger("an engine")


@pytest.fixture
def head() -> EngineHead:
    return EngineHead(torch.zeros(50, 8), Settings(capacity=10), num_groups=2)


LABELS = {"model_name": "the model", "engine": "1"}


class Metric:
    """A stand-in for prometheus_client's metrics."""

    def __init__(
        self, name: str, documentation: str, names: Any, multiprocess_mode: str = ""
    ) -> None:
        self.name, self.mode, self.value = name, multiprocess_mode, 0
        assert documentation and names == tuple(LABELS)

    def labels(self, **labels: str) -> "Metric":
        assert labels == LABELS
        return self

    def inc(self, amount: int) -> None:
        assert amount >= 0, "Prometheus refuses counters that fall"
        self.value += amount

    def set(self, value: int) -> None:
        self.value = value


@pytest.fixture
def prometheus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Metric]]:
    counters: list[Metric] = []

    def make(*args: Any, **kwargs: Any) -> Metric:
        counters.append(Metric(*args, **kwargs))
        return counters[-1]

    module = ModuleType("prometheus_client")
    module.Counter = module.Gauge = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "prometheus_client", module)
    metrics._prometheus.cache_clear()
    yield counters
    metrics._prometheus.cache_clear()


def test_tells_what_is_new(head: EngineHead, caplog: pytest.LogCaptureFixture) -> None:
    report = Report(head, logger, None)
    caplog.set_level(logging.INFO, "an engine")
    report.tell(EngineStats(hits=3, misses=1, active=9))
    report.tell(EngineStats(hits=3, misses=1, active=10))
    report.tell(EngineStats(hits=4, misses=4, active=8, dense_steps=3))
    words = "Covered: %d tokens, Not covered: %d tokens, Active: %d of 20 tokens, Dense steps: %d"
    assert [record.getMessage() for record in caplog.records] == [
        "MicroSpec metrics: Coverage: 75.0%, " + words % (3, 1, 9, 0),
        "MicroSpec metrics: Coverage: 25.0%, " + words % (1, 3, 8, 3),
    ], "nothing where there was no text"


def test_nothing_before_any_text(head: EngineHead, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "an engine")
    Report(head, logger, None).tell(EngineStats(0, 0, 5))
    assert not caplog.records


def test_prometheus_gets_sums(head: EngineHead, prometheus: list[Metric]) -> None:
    """Two drafts in one process add to the same counters."""
    first, second = (Report(head, logger, LABELS) for _ in range(2))
    assert not prometheus, "not before there is something to tell"
    first.tell(EngineStats(hits=3, misses=1, active=9))
    second.tell(EngineStats(hits=10, misses=0, active=4, dense_steps=7))
    first.tell(EngineStats(hits=5, misses=2, active=6))
    assert {metric.name: metric.value for metric in prometheus} == {
        "microspec:covered_tokens": 15,
        "microspec:uncovered_tokens": 2,
        "microspec:dense_steps": 7,
        "microspec:active_tokens": 6,
    }
    assert {metric.mode for metric in prometheus} == {"", "livesum"}


def test_stats_that_begin_anew(head: EngineHead, prometheus: list[Metric]) -> None:
    report = Report(head, logger, LABELS)
    report.tell(EngineStats(hits=3, misses=1, active=9))
    report.reset()
    report.tell(EngineStats(hits=1, misses=1, active=2))
    assert [metric.value for metric in prometheus] == [4, 2, 0, 2]


def test_prometheus_is_not_needed_where_the_engine_has_none(
    head: EngineHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)  # importing it fails
    Report(head, logger, None).tell(EngineStats(1, 1, 1))
