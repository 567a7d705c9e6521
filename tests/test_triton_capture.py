# SPDX-License-Identifier: Apache-2.0
"""Triton tunes its kernel outside of graph captures: stand-ins for the launch and the stream."""

import importlib
import logging
from typing import Any

import pytest
import torch

pytest.importorskip("triton")


class Recorded:
    """Stands for the autotuner: records the launches, tuned or of its function alone."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, dict[str, Any]]] = []
        self.fn = {(18,): lambda *_, **constants: self.launches.append(("first", constants))}

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *_, **constants: self.launches.append(("tuned", constants))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    projection = importlib.import_module("microspec_kernels.triton_kernels.projection")
    recorded = Recorded()
    monkeypatch.setattr(projection, "project_kernel", recorded)
    monkeypatch.setattr(projection, "multiprocessors", lambda _: 9)
    monkeypatch.setattr(projection, "_tuned", set())
    projection._say_untuned.cache_clear()
    return recorded


def project(dim: int = 256, m: int = 2, dtype: torch.dtype = torch.bfloat16) -> None:
    projection = importlib.import_module("microspec_kernels.triton_kernels.projection")
    ids = torch.zeros(9 * projection.BLOCK_SLOTS, dtype=torch.int32)
    hidden, weight = torch.zeros(m, dim, dtype=dtype), torch.zeros(3, dim, dtype=dtype)
    projection.Projection(hidden, weight, ids)


def capturing(monkeypatch: pytest.MonkeyPatch, value: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: value)


def test_a_first_call_in_a_capture_takes_the_first_configuration(
    kernel: Recorded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    projection = importlib.import_module("microspec_kernels.triton_kernels.projection")
    capturing(monkeypatch, True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            project()
    assert [how for how, _ in kernel.launches] == ["first", "first"]
    first = projection.configs(False, 16)[0].all_kwargs()
    assert first.items() <= kernel.launches[0][1].items() and "BLOCK_D" in first
    (record,) = caplog.records
    assert "inside a graph's capture" in record.message


def test_a_tuned_call_is_captured_as_tuned(
    kernel: Recorded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    capturing(monkeypatch, False)
    project()
    capturing(monkeypatch, True)
    project()
    assert [how for how, _ in kernel.launches] == ["tuned", "tuned"] and not caplog.records


@pytest.mark.parametrize("other", [{"dim": 128}, {"m": 17}, {"dtype": torch.float16}])
def test_a_call_of_another_kind_is_not_tuned_by_this(
    kernel: Recorded, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    """Triton tunes for each dim, size class of M and dtypes."""
    capturing(monkeypatch, False)
    project()
    capturing(monkeypatch, True)
    kernel.fn = {(n,): kernel.fn[(18,)] for n in (9, 18)}
    project(**other)
    assert [how for how, _ in kernel.launches] == ["tuned", "first"]
