# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests that need a CUDA device.

Without a device the tests are skipped; tests/conftest.py counts them.
"""

import gc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from backends_under_test import NO_DEVICE

from microspec_kernels import backends

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-seconds", type=float, default=20.0, help="of tests/gpu/test_soak.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=NO_DEVICE))


@pytest.fixture(autouse=True, scope="session")
def compiled_kernels() -> None:
    """Assert that the compiled CUDA kernels serve the ops, and no backend replaces them."""
    assert backends.HAS_CUDA, "the library was built without nvcc: it has no CUDA kernels"
    assert backends.backend() == "cuda", f"the backend is {backends.backend()!r}, not 'cuda'"


@pytest.fixture(autouse=True)
def device_memory() -> Iterator[None]:
    """Wait until a test's work on the device has ended, and free memory if it took much.

    To collect garbage after every test would take a minute in all.
    """
    yield
    torch.cuda.synchronize()
    if torch.cuda.memory_reserved() > torch.cuda.get_device_properties(0).total_memory // 8:
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """Return a generator on the device, seeded by the test's name."""
    return torch.Generator("cuda").manual_seed(zlib.crc32(request.node.nodeid.encode()))
