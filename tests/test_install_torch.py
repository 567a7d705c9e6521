# SPDX-License-Identifier: Apache-2.0
"""Without a GPU `make build` installs torch's CPU build, or none."""

import subprocess
from types import ModuleType

import pytest
import release_scripts

CPU = ["torch", "sympy"]
CUDA = ["torch", "nvidia-cublas", "triton"]


@pytest.fixture
def script() -> ModuleType:
    return release_scripts.load("install_torch")


@pytest.mark.parametrize(
    ("gpu", "planned", "failing", "installed", "message"),
    [
        (True, CUDA, None, [("pip", "torch")], "0"),
        (False, CPU, None, [("pip", "torch==2.13.0")], "0"),
        (False, CUDA, None, [("pip", "uv"), ("uv", "torch==2.13.0")], ""),
        (False, CUDA, "uv", [("pip", "uv"), ("uv", "torch==2.13.0")], "PyTorch's CPU index"),
        (False, CUDA, "pip", [("pip", "uv")], "PyTorch's CPU index"),
    ],
)
def test_what_is_installed(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    planned: list[str],
    failing: str | None,
    installed: list[tuple[str, str]],
    message: str,
) -> None:
    calls: list[tuple[str, ...]] = []

    def run(*command: str) -> int:
        calls.append(command)
        return int(command[2] == failing)

    monkeypatch.setattr(script, "run", run)
    monkeypatch.setattr(script, "planned", lambda requirement: planned)
    monkeypatch.setattr(script.shutil, "which", lambda name: name if gpu else None)
    end = ""
    try:
        script.main()
    except SystemExit as exit_:
        end = str(exit_.code)
    assert [(call[2], call[-1]) for call in calls] == installed
    assert all("cpu" in call for call in calls if call[2] == "uv")
    assert message in end if message else end == ""


def test_the_plan_is_read(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    report = (
        '{"install": [{"metadata": {"name": "torch"}}, {"metadata": {"name": "nvidia-nccl-cu13"}}]}'
    )
    monkeypatch.setattr(
        script.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=report)
    )
    names = script.planned("torch")
    assert names == ["torch", "nvidia-nccl-cu13"] and script.brings_cuda(names)
    assert not script.brings_cuda(["torch", "triton", "numpy"])
