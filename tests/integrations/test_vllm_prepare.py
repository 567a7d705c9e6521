# SPDX-License-Identifier: Apache-2.0
"""What vLLM's plugin checks and patches if the switch is on."""

import logging
from pathlib import Path
from typing import Any

import pytest

from microspec_kernels.engine import SWITCH
from microspec_kernels.integrations.hooks import Guard, UnsupportedError
from microspec_kernels.integrations.hooks.wrap import wrap
from microspec_kernels.integrations.vllm import plugin, register
from microspec_kernels.integrations.vllm.drafter import hold
from microspec_kernels.integrations.vllm.hook_points import TESTED, hook_points

from .fake_vllm import WorkerBase, config, installed
from .test_vllm_switch import worker


@pytest.fixture(autouse=True)
def _no_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)


def test_hook_points_of_each_version() -> None:
    for minor in TESTED:
        assert hook_points(f"{minor}.0") == hook_points(f"{minor}.7+cu130") != ()
    for version in ("0.29.1", "0.3", "0.300.0", "1.30.0", ""):
        with pytest.raises(UnsupportedError, match="vllm: expected a version among"):
            hook_points(version)


def test_hook_points_are_checked_before_anything_is_patched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with installed():
        monkeypatch.setattr(
            "microspec_kernels.integrations.hooks.hook_points.package_root",
            lambda package: tmp_path,
        )
        register()
        with pytest.raises(UnsupportedError, match="expected the hook points of vllm") as refused:
            worker(config(microspec=True))
    for hook_point in hook_points("0.32.0"):
        assert f"{hook_point}: no such module" in str(refused.value)


def test_a_worker_without_a_drafter_is_refused() -> None:
    class Worker:
        def __init__(self, vllm_config: Any) -> None:
            self.vllm_config, self.model_runner = vllm_config, type("Runner", (), {})()

        def load_model(self) -> str:
            return "loaded"

    wrap(Worker, "load_model", plugin._load_model)
    assert Worker(config()).load_model() == "loaded"
    on = Worker(config(microspec=True))
    with pytest.raises(UnsupportedError, match=r"Runner\.load_model: expected a drafter attached"):
        on.load_model()
    hold(on.model_runner, Drafted())  # type: ignore[arg-type]
    assert on.load_model() == "loaded"


class Drafted:
    """Record a worker's calls of its drafter."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.guard = Guard(logging.getLogger(__name__), alone=True, then="")

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.asked.append(name) or name


class Worker(WorkerBase):
    def __init__(self, vllm_config: Any) -> None:
        super().__init__(vllm_config)
        self.model_runner = type("Runner", (), {})()

    def load_model(self) -> str:
        hold(self.model_runner, Drafted())  # type: ignore[arg-type]
        return "load_model"

    def compile_or_warm_up_model(self) -> str:
        return "compile_or_warm_up_model"

    def reload_weights(self, *args: Any) -> str:
        return "reload_weights"

    def finish_weight_update(self) -> str:
        return "finish_weight_update"


@pytest.mark.parametrize("use_v2", [False, True])
def test_what_is_prepared(use_v2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    patched: list[str] = []
    monkeypatch.setattr(
        plugin, "check_hook_points", lambda *hook_points: patched.append("hook points checked")
    )
    for runner in ("v1", "v2"):
        name = f"microspec_kernels.integrations.vllm.{runner}.install"
        monkeypatch.setattr(name, lambda runner=runner: patched.append(runner))
    cls: Any = type("CPUWorker", (Worker,), {})
    with installed():
        wrap(cls, "__init__", plugin._make_worker)
        unserved = config(microspec=True)
        unserved.speculative_config.method = "ngram"
        with pytest.raises(UnsupportedError, match=r"speculative_config\.method"):
            cls(unserved)
        assert patched == ["hook points checked"]
        on = config(microspec=True)
        on.use_v2_model_runner = use_v2
        worker, without = cls(on), cls(on)
    assert patched[1:3] == ["hook points checked", "v2" if use_v2 else "v1"]
    for name in (
        "load_model",
        "compile_or_warm_up_model",
        "reload_weights",
        "finish_weight_update",
    ):
        assert getattr(worker, name)() == name
        started = worker.model_runner.microspec_drafter.guard.started
        assert started == (name not in ("load_model",)), "failures of the start end it"
    assert worker.microspec_stats() == "stats"
    assert worker.model_runner.microspec_drafter.asked == ["reset", "reload", "reload", "stats"]
    monkeypatch.setitem(globals(), "hold", lambda *_: None)
    with pytest.raises(UnsupportedError, match=r"Runner\.load_model: expected a drafter attached"):
        without.load_model()
    assert Worker(config()).load_model.__func__ is Worker.load_model  # the others are unchanged
