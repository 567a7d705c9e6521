# SPDX-License-Identifier: Apache-2.0
"""Marks, hypothesis profiles and fixtures for all tests.

Fixtures restore the process state after each test. docs/testing.md explains the marks.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent

# torch and Triton read these variables when they load, and child processes inherit them. Passive
# threads do not spin while they wait, which leaves the cores to the other test processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    threads = max(2, len(os.sched_getaffinity(0)) // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
# Runs can share this cache: its keys contain the kernel's source, the target and Triton's version.
os.environ.setdefault("TRITON_CACHE_DIR", str(HERE.parent / "build" / "triton-cache"))

import pytest  # noqa: E402
import torch  # noqa: E402
from backends_under_test import BACKENDS, NO_ARM, NO_DEVICE  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

import microspec_kernels  # noqa: E402

MARKS = {
    "backends(*names)": "which of backends_under_test to run over",
    "emulation": "CUDA kernels on an emulated device; building that takes minutes",
    "triton": "Triton kernels in Triton's interpreter; only with TRITON_INTERPRET=1",
    "gpu": "needs a CUDA device and is skipped without one",
    "arm": "Arm kernels, cross-compiled and run by qemu-user",
    "slow": "takes long for what it adds to the others",
    "slow_interpreted": "is slow over the Triton kernels",
}
FOLDERS = {HERE / "emulation": pytest.mark.emulation, HERE / "gpu": pytest.mark.gpu}

# No deadlines: a shared machine stalls at times, whatever the code does.
settings.register_profile(
    "default",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# A failure in CI must repeat on the next push of the same code.
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure(config: pytest.Config) -> None:
    for mark, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{mark}: {meaning}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("backends")
    if mark is not None:
        backends = [pytest.param(name, marks=BACKENDS[name].marks) for name in mark.args]
        metafunc.parametrize("backend", backends, indirect=True, scope="module")


@pytest.hookimpl(tryfirst=True)  # before -m selects by marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for folder, mark in FOLDERS.items():
            if folder in item.path.parents:
                item.add_marker(mark)
        if item.get_closest_marker("triton") and item.get_closest_marker("slow_interpreted"):
            item.add_marker(pytest.mark.slow)
        # Several processes must not share one device.
        if config.pluginmanager.hasplugin("xdist") and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.xdist_group("gpu"))


@pytest.hookimpl(tryfirst=True)  # before a process of xdist reports its tests
def pytest_collection_finish(session: pytest.Session) -> None:
    # xdist 3.8 appends a test's group to an attribute that pytest does not read from 9.2 on, and
    # every test would be a group of its own.
    for item in session.items:
        grouped = getattr(item, "_nodeid", item.nodeid)
        if grouped != item.nodeid:
            item._id = item.id.parse(grouped)


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    skipped = terminalreporter.getreports("skipped")
    for kind, reason in (("GPU", NO_DEVICE), ("Arm", NO_ARM)):
        count = sum(reason in str(report.longrepr) for report in skipped)
        if count:
            terminalreporter.write_line(f"NOT RUN: {count} {kind} tests ({reason})", red=True)


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    """Return the name of the backend that serves the ops in this test."""
    return getattr(request, "param", "cpu")


@pytest.fixture(autouse=True)
def _serving(request: pytest.FixtureRequest, backend: str) -> Iterator[None]:
    under_test, test = BACKENDS[backend], request.function
    hypothesis_settings = getattr(test, "_hypothesis_internal_use_settings", None)
    if hypothesis_settings is not None and under_test.examples is not None:
        few = settings(
            hypothesis_settings,
            max_examples=min(under_test.examples, hypothesis_settings.max_examples),
        )
        test._hypothesis_internal_use_settings = few
    with under_test.serving(seed=zlib.crc32(request.node.nodeid.encode())):
        yield
    if hypothesis_settings is not None:
        test._hypothesis_internal_use_settings = hypothesis_settings


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    threads, backend = torch.get_num_threads(), microspec_kernels.backend()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    if microspec_kernels.backend() != backend:
        microspec_kernels.backend(backend)
