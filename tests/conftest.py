"""Shared by all tests: the hypothesis profile, and each test leaves the process as it found it."""

import os
import zlib
from collections.abc import Iterator

import pytest
import torch
from backends_under_test import BACKENDS, NO_ARM
from hypothesis import HealthCheck, settings

import microspec_kernels

# A shared machine stalls now and then, which says nothing about the code: no deadlines.
settings.register_profile(
    "default",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# What fails in CI must fail again on the next push of the same code.
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "backends(*names): which of backends_under_test to run over")
    config.addinivalue_line("markers", "arm: Arm kernels, cross-compiled and run by qemu-user")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("backends")
    if mark is not None:
        backends = [pytest.param(name, marks=BACKENDS[name].marks) for name in mark.args]
        metafunc.parametrize("backend", backends, indirect=True, scope="module")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.getreports("skipped")
    count = sum(NO_ARM in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(f"NOT RUN: {count} Arm tests ({NO_ARM})", red=True)


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    """The backend that serves the ops in this test."""
    return getattr(request, "param", "cpu")


@pytest.fixture(autouse=True)
def _serving(request: pytest.FixtureRequest, backend: str) -> Iterator[None]:
    under_test, test = BACKENDS[backend], request.function
    given = getattr(test, "_hypothesis_internal_use_settings", None)
    if given is not None and under_test.examples is not None:
        few = settings(given, max_examples=min(under_test.examples, given.max_examples))
        test._hypothesis_internal_use_settings = few
    with under_test.serving(seed=zlib.crc32(request.node.nodeid.encode())):
        yield
    if given is not None:
        test._hypothesis_internal_use_settings = given


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    threads, backend = torch.get_num_threads(), microspec_kernels.backend()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    if microspec_kernels.backend() != backend:
        microspec_kernels.backend(backend)
