# SPDX-License-Identifier: Apache-2.0
"""What vLLM's plugin reports about a drafter, and when."""

import asyncio
import logging
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from microspec_kernels.engine import EngineHead, EngineStats, Settings
from microspec_kernels.integrations.hooks import HeadChoice
from microspec_kernels.integrations.hooks import metrics as engine_metrics
from microspec_kernels.integrations.vllm import api_metrics, metrics
from microspec_kernels.integrations.vllm.metrics import Metrics

from .fake_vllm import config, installed

LABELS = {"model_name": "the model", "engine": "1"}
CHOICE = HeadChoice(True, None, logging.getLogger(__name__))


class Prometheus:
    """The used parts of prometheus_client's counters and gauges."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def metric(self, name: str, documentation: str, names: Any, multiprocess_mode: str = "") -> Any:
        assert documentation.endswith(".") and names == tuple(LABELS)
        self.values[name] = 0
        values = self.values

        class Metric:
            def labels(self, **labels: str) -> "Metric":
                assert labels == LABELS
                return self

            def inc(self, amount: float) -> None:
                values[name] += amount

            def set(self, value: float) -> None:
                values[name] = value

        return Metric()


@pytest.fixture(autouse=True)
def prometheus(monkeypatch: pytest.MonkeyPatch) -> Any:
    registry = Prometheus()
    module: Any = ModuleType("prometheus_client")
    module.Counter = module.Gauge = registry.metric
    monkeypatch.setitem(sys.modules, "prometheus_client", module)
    engine_metrics._prometheus.cache_clear()
    with installed():
        yield registry
    engine_metrics._prometheus.cache_clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


def head_of() -> EngineHead:
    return EngineHead(torch.randn(20, 4), Settings(capacity=8, learn=False))


def go_on(head: EngineHead, *tokens: int) -> None:
    head.observe(torch.tensor(tokens))


def test_a_line_at_vllms_interval_about_what_is_new(
    clock: list[float], caplog: pytest.LogCaptureFixture, prometheus: Prometheus
) -> None:
    caplog.set_level("INFO", "vllm")
    head = head_of()
    told = Metrics(head, CHOICE, True, LABELS)

    def steps(seconds: float) -> list[str]:
        caplog.clear()
        for _ in range(3):
            told.tick()
        clock[0] += seconds
        for _ in range(3):
            told.tick()
        return caplog.messages

    go_on(head, 1, 2)
    assert steps(9.9) == []
    assert steps(0.2) == [
        "MicroSpec metrics: Coverage: 0.0%, Covered: 0 tokens, Not covered: 2 tokens, "
        "Active: 2 of 8 tokens, Dense steps: 0"
    ]
    go_on(head, 1, 2, 3)
    go_on(head, 3)
    assert steps(9.9) == []
    [line] = steps(0.2)
    assert "Coverage: 75.0%, Covered: 3 tokens, Not covered: 1 tokens" in line
    assert steps(10.1) == []  # without new text there is nothing to report
    assert prometheus.values == {
        "microspec:covered_tokens": 3,
        "microspec:uncovered_tokens": 3,
        "microspec:dense_steps": 0,
        "microspec:active_tokens": 3,
    }


def test_the_device_is_not_asked_between_reports(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = head_of()
    told, asked = Metrics(head, CHOICE, True, LABELS), []
    monkeypatch.setattr(head, "stats", lambda: asked.append(clock[0]))
    for _ in range(50):
        told.tick()
    assert asked == []


def test_a_copy_is_given_a_step_to_arrive(
    clock: list[float], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, stats are those of the previous call."""
    caplog.set_level("INFO", "vllm")
    head = head_of()
    told, newest = Metrics(head, CHOICE, True, LABELS), head.stats
    arrived: list[Any] = [None]
    monkeypatch.setattr(head, "stats", lambda: arrived.append(newest()) or arrived[-2])
    for token in (1, 2):
        go_on(head, token)
        clock[0] += 10.1
        told.tick()
        assert len(caplog.messages) == token - 1
        told.tick()
        assert len(caplog.messages) == token
    assert "Not covered: 1 tokens, Active: 2" in caplog.messages[-1]


def test_other_ranks_tell_nothing(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vllm")
    head = head_of()
    told = Metrics(head, CHOICE, False, LABELS)
    go_on(head, 1)
    clock[0] += 100
    for _ in range(3):
        told.tick()
    assert caplog.messages == []


def test_stats_that_begin_anew(clock: list[float], prometheus: Prometheus) -> None:
    """Stats drop at the reset after the warm-up, but counters of Prometheus must not fall."""
    head = head_of()
    told = Metrics(head, CHOICE, True, LABELS)
    for tokens in ([1, 2, 3, 4], [5]):
        go_on(head, *tokens)
        clock[0] += 100
        for _ in range(2):
            told.tick()
        head.reset()
        told.reset()
    assert prometheus.values["microspec:uncovered_tokens"] == 5


def test_when_asked() -> None:
    head = head_of()
    go_on(head, 1, 2)
    go_on(head, 2, 5)
    choice = HeadChoice(True, None, logging.getLogger(__name__))
    for opted_out in (True, False, True):
        choice.step(1, opted_out)
    want = {"hits": 1, "misses": 3, "active": 3, "dense_steps": 2, "coverage": 0.25}
    assert Metrics(head, choice, False, LABELS).newest(wait=True) == want


class Worker:
    """A worker whose totals the tests set; None before its first copy of them has arrived."""

    def __init__(self, *totals: int) -> None:
        self.totals: dict[str, int] | None = dict(zip(EngineStats._fields, totals, strict=True))
        self.waits: list[bool] = []

    def microspec_stats(self, wait: bool = True) -> Any:
        self.waits.append(wait)
        return self.totals and {**self.totals, "coverage": 0.5}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    from vllm.v1.engine.async_llm import AsyncLLM

    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    api_metrics.install()
    return AsyncLLM(config(microspec=True), [Worker(3, 1, 9, 0), Worker(3, 1, 9, 0)])


def log_stats(client: Any) -> None:
    asyncio.run(client.do_log_stats())


def test_the_server_shows_its_workers_totals_once(client: Any, prometheus: Prometheus) -> None:
    """Ranks of a tensor-parallel group have the same totals."""
    for totals in ((3, 1, 9, 0), (5, 1, 8, 4), (5, 1, 8, 4)):
        client.workers = [Worker(*totals), Worker(*totals)]
        log_stats(client)
        assert client.workers[0].waits == [False]  # the engine's next step does not wait
    assert client.logged == 3
    assert prometheus.values == {
        "microspec:covered_tokens": 5,
        "microspec:uncovered_tokens": 1,
        "microspec:dense_steps": 4,
        "microspec:active_tokens": 8,
    }


def test_workers_that_begin_anew_do_not_lower_a_counter(
    client: Any, prometheus: Prometheus
) -> None:
    log_stats(client)
    client.workers = [Worker(1, 0, 2, 0)]
    log_stats(client)
    assert prometheus.values["microspec:covered_tokens"] == 4
    assert prometheus.values["microspec:active_tokens"] == 2


def test_workers_without_totals(client: Any, prometheus: Prometheus) -> None:
    for worker in client.workers:
        worker.totals = None
    log_stats(client)
    assert prometheus.values == {} and client.logged == 1


@pytest.mark.parametrize("why", ["off", "multi-process"])
def test_the_server_does_not_ask(
    why: str, client: Any, prometheus: Prometheus, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "off":
        client.vllm_config = config()
    else:
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "folder")
    log_stats(client)
    assert client.workers[0].waits == [] and prometheus.values == {} and client.logged == 1


def test_an_error_does_not_end_the_servers_statistics(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client.workers = [object()]
    log_stats(client)
    assert client.logged == 1
    assert "cannot be shown on /metrics" in caplog.text
