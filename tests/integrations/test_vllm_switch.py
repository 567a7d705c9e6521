# SPDX-License-Identifier: Apache-2.0
"""vLLM's plugin: the switch, its errors, and that it touches nothing before."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from microspec_kernels.engine import SWITCH, Settings
from microspec_kernels.integrations.hooks import UnsupportedError
from microspec_kernels.integrations.vllm import plugin, register
from microspec_kernels.integrations.vllm.switch import settings_of

from .fake_vllm import Executor, WorkerBase, config, installed

SMALL = {"capacity": 64, "mode": "packed"}


@pytest.fixture(autouse=True)
def _no_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Record the configurations for which the plugin would have patched vLLM."""
    seen: list[Any] = []
    monkeypatch.setattr(plugin, "_prepare", lambda vllm_config, worker: seen.append(vllm_config))
    with installed():
        yield seen


def worker(vllm_config: Any) -> Any:
    from vllm.v1.worker.worker_base import WorkerBase  # register() has wrapped these

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


def test_the_switch_does_not_enter_the_compile_hash() -> None:
    """vLLM hashes the JSON of additional_config, wherever the settings came from."""
    import pickle

    on = config(microspec=SMALL, other=3)
    off = config(other=3)
    assert settings_of(on) == Settings(**SMALL) and settings_of(off) is None
    hashed = [json.dumps(each.additional_config, sort_keys=True) for each in (on, off)]
    assert hashed == ['{"other": 3}'] * 2
    sent = config()
    sent.additional_config = pickle.loads(pickle.dumps(on.additional_config))
    assert settings_of(sent) == Settings(**SMALL)
    assert not config().additional_config and not _settled(config()).additional_config


def _settled(vllm_config: Any) -> Any:
    settings_of(vllm_config)
    return vllm_config


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
            UnsupportedError, match=r'additional_config\["microspec"\]: expected the same as'
        ):
            settings_of(config(microspec=other))
    monkeypatch.setenv(SWITCH, "0")
    with pytest.raises(UnsupportedError, match="expected the same as MICROSPEC, None"):
        settings_of(config(microspec=True))


@pytest.mark.parametrize("switch", ["yes", '{"capacity": 0}', '{"size": 3}', "[1]"])
def test_a_switch_that_cannot_be_read_ends_every_process(
    switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, switch)
    with (
        installed(),
        pytest.raises(UnsupportedError, match="microspec: MICROSPEC: expected settings, got"),
    ):
        register()


def test_a_configuration_that_cannot_be_read(prepared: list[Any]) -> None:
    register()
    with pytest.raises(
        UnsupportedError, match=r'additional_config\["microspec"\]: expected settings'
    ):
        worker(config(microspec={"capacity": "large"}))


def test_additional_config_of_a_class_of_its_own() -> None:
    other = config()
    other.additional_config = object()
    assert settings_of(other) is None


def test_another_version_with_the_switch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with installed("0.34.1+cpu"):
        register()  # off, so the plugin ignores it
        with pytest.raises(
            UnsupportedError, match=r"expected a version among 0\.30, .*, got 0\.34\.1"
        ):
            worker(config(microspec=True))
        monkeypatch.setenv(SWITCH, "1")
        with pytest.raises(
            UnsupportedError, match=r"vllm: expected a version among .*, got 0\.34\.1"
        ):
            register()


def test_a_version_whose_workers_are_elsewhere_says_what_it_cannot_see(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with installed("0.40.0"):
        del sys.modules["vllm.v1.worker.worker_base"].WorkerBase
        with caplog.at_level("WARNING", "vllm"):
            register()
    assert "additional_config is not read by vLLM 0.40.0" in caplog.text
