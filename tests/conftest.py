"""Shared by all tests: the hypothesis profile, and each test leaves the process as it found it."""

import os
from collections.abc import Iterator

import pytest
import torch
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


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    threads, backend = torch.get_num_threads(), microspec_kernels.backend()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    if microspec_kernels.backend() != backend:
        microspec_kernels.backend(backend)
