"""vLLM's plugin: when it is on, when it refuses, and what it touches before."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from microspec_kernels.integrations.engine import SWITCH, Refused, Settings
from microspec_kernels.integrations.vllm import plugin, register
from microspec_kernels.integrations.vllm.drafter import hold
from microspec_kernels.integrations.vllm.plugin import settings_of
from microspec_kernels.integrations.vllm.seams import TESTED, seams
from microspec_kernels.integrations.vllm.wrap import wrap

from .fake_vllm import Executor, WorkerBase, config, installed

SMALL = {"capacity": 64, "mode": "packed"}


@pytest.fixture(autouse=True)
def _no_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The configurations for which vLLM would have been patched."""
    seen: list[Any] = []
    monkeypatch.setattr(plugin, "_prepare", lambda vllm_config, worker: seen.append(vllm_config))
    with installed():
        yield seen


def worker(vllm_config: Any) -> Any:
    from vllm.v1.worker.worker_base import WorkerBase  # what register() has wrapped

    return WorkerBase(vllm_config=vllm_config)


def test_the_entry_module_imports_neither_the_engine_nor_the_plugin() -> None:
    code = (
        "import sys, microspec_kernels.integrations.vllm as entry; "
        "print([name for name in sys.modules if name.split('.')[0] == 'vllm' "
        "or name.startswith(entry.__name__ + '.')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("switch", [None, "", "0"])
def test_off_prepares_nothing(
    switch: str | None, prepared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if switch is not None:
        monkeypatch.setenv(SWITCH, switch)
    register()
    off = config()
    assert worker(off).vllm_config is off
    assert worker(config(microspec=False)) is not None
    assert prepared == []


@pytest.mark.parametrize("switch", ["1", json.dumps(SMALL)])
def test_on_by_the_environment(
    switch: str, prepared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, switch)
    register()
    on = config()
    assert worker(on).vllm_config is on
    assert prepared == [on]


def test_on_by_the_configuration_alone(prepared: list[Any]) -> None:
    register()
    on = config(microspec=SMALL)
    worker(on)
    assert prepared == [on]
    assert settings_of(on) == Settings(**SMALL)


def test_to_register_twice_is_as_once(prepared: list[Any]) -> None:
    register()
    register()
    worker(config(microspec=True))
    assert len(prepared) == 1


def test_workers_that_do_not_inherit_the_environment_are_told(
    prepared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, json.dumps(SMALL))
    register()
    from vllm.v1.executor.abstract import Executor

    on = config()
    Executor(on)
    worker(on)
    monkeypatch.delenv(SWITCH)
    worker(on)
    assert prepared == [on, on] and settings_of(on) == Settings(**SMALL)


def test_off_leaves_the_executor_alone() -> None:
    with installed():
        register()
        from vllm.v1.executor.abstract import Executor as used

        assert used.__init__ is Executor.__init__
        assert WorkerBase.__init__ is not used.__init__


def test_asked_for_twice_and_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, json.dumps(SMALL))
    assert settings_of(config(microspec=SMALL)) == Settings(**SMALL)
    for other in (True, False, {"capacity": 65, "mode": "packed"}):
        with pytest.raises(
            Refused, match=r'additional_config\["microspec"\]: expected the same as'
        ):
            settings_of(config(microspec=other))
    monkeypatch.setenv(SWITCH, "0")
    with pytest.raises(Refused, match="expected the same as MICROSPEC, None"):
        settings_of(config(microspec=True))


@pytest.mark.parametrize("switch", ["yes", '{"capacity": 0}', '{"size": 3}', "[1]"])
def test_a_switch_that_cannot_be_read_ends_every_process(
    switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, switch)
    with installed(), pytest.raises(Refused, match="microspec: MICROSPEC: expected settings, got"):
        register()


def test_a_configuration_that_cannot_be_read(prepared: list[Any]) -> None:
    register()
    with pytest.raises(Refused, match=r'additional_config\["microspec"\]: expected settings'):
        worker(config(microspec={"capacity": "large"}))


def test_additional_config_of_a_class_of_its_own() -> None:
    other = config()
    other.additional_config = object()
    assert settings_of(other) is None


def test_another_version_with_the_switch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with installed("0.34.1+cpu"):
        register()  # off: none of the plugin's business
        with pytest.raises(Refused, match=r"expected a version among 0\.30, .*, got 0\.34\.1"):
            worker(config(microspec=True))
        monkeypatch.setenv(SWITCH, "1")
        with pytest.raises(Refused, match=r"vllm: expected a version among .*, got 0\.34\.1"):
            register()


def test_a_version_whose_workers_are_elsewhere_says_what_it_cannot_see(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with installed("0.40.0"):
        del sys.modules["vllm.v1.worker.worker_base"].WorkerBase
        with caplog.at_level("WARNING", "vllm"):
            register()
    assert "additional_config is not read by vLLM 0.40.0" in caplog.text


def test_seams_of_each_version() -> None:
    for minor in TESTED:
        assert seams(f"{minor}.0") == seams(f"{minor}.7+cu130") != ()
    for version in ("0.29.1", "0.3", "0.300.0", "1.30.0", ""):
        with pytest.raises(Refused, match="vllm: expected a version among"):
            seams(version)


def test_seams_are_checked_before_anything_is_patched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with installed():
        monkeypatch.setattr(
            "microspec_kernels.integrations.engine.seams.package_root", lambda package: tmp_path
        )
        register()
        with pytest.raises(Refused, match="expected the seams of vllm") as refused:
            worker(config(microspec=True))
    for seam in seams("0.32.0"):
        assert f"{seam}: no such module" in str(refused.value)


def test_a_worker_without_a_drafter_is_refused() -> None:
    class Worker:
        def __init__(self, vllm_config: Any) -> None:
            self.vllm_config, self.model_runner = vllm_config, type("Runner", (), {})()

        def load_model(self) -> str:
            return "loaded"

    wrap(Worker, "load_model", plugin._load_model)
    assert Worker(config()).load_model() == "loaded"
    on = Worker(config(microspec=True))
    with pytest.raises(Refused, match=r"Runner\.load_model: expected a drafter attached"):
        on.load_model()
    hold(on.model_runner, object())  # type: ignore[arg-type]
    assert on.load_model() == "loaded"


def test_wrapped_arguments_are_known_by_name() -> None:
    class Engine:
        def step(self, tokens: int, *, groups: int = 2) -> tuple[int, int]:
            return tokens, groups

    seen: list[Any] = []

    def around(original: Any, given: Any) -> Any:
        seen.append({name: value for name, value in given.items() if name != "self"})
        return original()

    wrap(Engine, "step", around)
    wrap(Engine, "step", around)
    assert Engine().step(1) == (1, 2) and Engine().step(tokens=3, groups=4) == (3, 4)
    assert seen == [{"tokens": 1}, {"tokens": 3, "groups": 4}]
    with pytest.raises(TypeError):
        Engine().step()  # type: ignore[call-arg]


class Drafted:
    """Notes what a worker asks of its drafter."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda: self.asked.append(name) or name


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
    monkeypatch.setattr(plugin, "check_seams", lambda *given: patched.append("seams checked"))
    for runner in ("v1", "v2"):
        name = f"microspec_kernels.integrations.vllm.{runner}.install"
        monkeypatch.setattr(name, lambda runner=runner: patched.append(runner))
    cls: Any = type("CPUWorker", (Worker,), {})
    with installed():
        wrap(cls, "__init__", plugin._make_worker)
        unserved = config(microspec=True)
        unserved.speculative_config.method = "ngram"
        with pytest.raises(Refused, match=r"speculative_config\.method"):
            cls(unserved)
        assert patched == ["seams checked"]
        on = config(microspec=True)
        on.use_v2_model_runner = use_v2
        worker, without = cls(on), cls(on)
    assert patched[1:3] == ["seams checked", "v2" if use_v2 else "v1"]
    for name in (
        "load_model",
        "compile_or_warm_up_model",
        "reload_weights",
        "finish_weight_update",
    ):
        assert getattr(worker, name)() == name
    assert worker.microspec_figures() == "figures"
    assert worker.model_runner.microspec_drafter.asked == ["restart", "reload", "reload", "figures"]
    monkeypatch.setattr(Drafted, "__new__", lambda cls: None)
    with pytest.raises(Refused, match=r"Runner\.load_model: expected a drafter attached"):
        without.load_model()
    assert Worker(config()).load_model.__func__ is Worker.load_model  # others are as they were
