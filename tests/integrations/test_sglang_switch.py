# SPDX-License-Identifier: Apache-2.0
"""SGLang's plugin: the switch, its errors, and that it touches nothing before."""

import json
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from microspec_kernels.engine import SWITCH
from microspec_kernels.integrations.hooks import UnsupportedError
from microspec_kernels.integrations.sglang import plugin, register
from microspec_kernels.integrations.sglang.hook_points import TESTED, hook_points

from .fake_sglang import LlamaForCausalLMEagle3, config, installed

SMALL = {"capacity": 8, "mode": "packed"}


@pytest.fixture(autouse=True)
def _sglang(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(plugin, "check_hook_points", lambda *_: None)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.5.23")
    with installed():
        yield


def hooks() -> list[tuple[str, Any]]:
    from sglang.srt.plugins.hook_registry import HookRegistry

    return HookRegistry.hooks


def scheduler(algorithm: bool = True, **runners: Any) -> Any:
    """Make a scheduler like SGLang does, with the hooks around its constructor.

    `runners` are the draft worker's graph runners.
    """
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker, EAGLEWorkerV2

    def make_draft_worker() -> Any:
        worker = EagleDraftWorker(LlamaForCausalLMEagle3(torch.randn(16, 4), 16, 16, None), 16)
        if algorithm:
            worker.init_lm_head()
        vars(worker).update(runners)
        return EAGLEWorkerV2(worker)

    scheduler = Scheduler.__new__(Scheduler)
    server_args = SimpleNamespace(make_draft_worker=make_draft_worker)
    ((_, hook),) = hooks()
    hook(Scheduler.__init__, scheduler, server_args)
    return scheduler


def test_the_entry_module_imports_neither_the_engine_nor_the_plugin() -> None:
    code = (
        "import sys, microspec_kernels.integrations.sglang as entry; "
        "print([name for name in sys.modules if name.split('.')[0] == 'sglang' "
        "or name.startswith(entry.__name__ + '.')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("switch", [None, "", "0"])
def test_off_touches_nothing(switch: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if switch is not None:
        monkeypatch.setenv(SWITCH, switch)
    register()
    assert hooks() == []


def test_nothing_to_win(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The log says why, and SGLang's own LM head drafts."""
    monkeypatch.setenv(SWITCH, "1")
    register()
    with caplog.at_level("INFO", logger="microspec_kernels"):
        worker = scheduler().draft_worker.draft_worker
    assert plugin.draft_of(worker) is None
    assert caplog.messages[-1].startswith(
        "MicroSpec stays off: all 16 rows: no smaller K would gain"
    )


def test_on_attaches_to_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, json.dumps(SMALL))
    register()
    assert [target for target, _ in hooks()] == [f"{plugin_scheduler()}.__init__"]
    draft = plugin.draft_of(scheduler().draft_worker.draft_worker)
    assert draft is not None and draft.head.capacity == SMALL["capacity"]
    assert draft.guard.started, "failures do not end the server from here on"


@pytest.mark.parametrize("runner", ["cuda_graph_runner", "cuda_graph_runner_for_draft_extend"])
def test_graphs_of_one_head_cannot_go_dense(
    runner: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As those of a runner that SGLang has for another platform."""
    caplog.set_level("INFO", "microspec_kernels.integrations.sglang")
    monkeypatch.setenv(SWITCH, json.dumps(SMALL))
    register()
    draft = plugin.draft_of(scheduler(**{runner: SimpleNamespace()}).draft_worker.draft_worker)
    assert draft is not None and not draft.choice.allowed
    assert caplog.messages[-1] == (
        f"MicroSpec: no step drafts with the engine's own LM head: {runner} captured without it"
    )
    assert plugin.draft_of(scheduler().draft_worker.draft_worker).choice.allowed


def plugin_scheduler() -> str:
    from sglang.srt.managers.scheduler import Scheduler

    return f"{Scheduler.__module__}.{Scheduler.__qualname__}"


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ("yes", "0, 1 or a JSON object"),
        ('{"slots": 3}', "slots"),
        ('{"vocabulary": "request"}', "vocabulary: expected 'shared'"),
    ],
)
def test_settings_that_cannot_be(
    switch: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, switch)
    with pytest.raises(UnsupportedError, match=message):
        register()


def test_what_fails_in_loading_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setitem(sys.modules, "sglang.srt.managers.scheduler", None)
    with pytest.raises(UnsupportedError, match=r"sglang\.srt\.managers\.scheduler"):
        register()


@pytest.mark.parametrize("version", TESTED)
def test_versions_that_are_served(version: str) -> None:
    assert hook_points(f"{version}.post1") == hook_points(version)


@pytest.mark.parametrize("version", ["0.5.19", "0.5.24", "0.5.2", "1.5.20"])
def test_versions_that_are_not(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    with pytest.raises(UnsupportedError, match=rf"0\.5\.23, got {version}"):
        register()


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("spec", "speculative_algorithm", None),
        ("spec", "speculative_algorithm", "DFLASH"),
        ("spec", "speculative_algorithm", "STANDALONE"),
        ("spec", "speculative_token_map", "map.pt"),
        ("spec", "speculative_adaptive", True),
        ("schedule", "enable_mixed_chunk", True),
        ("lora", "enable_lora", True),
        ("parallel", "attn_cp_size", 2),
        ("parallel", "pp_size", 2),
        ("disagg", "disaggregation_mode", "prefill"),
    ],
)
def test_configurations_that_are_not_served(
    group: str, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    groups = config()
    groups[group][name] = value
    with installed(groups):
        register()
        with pytest.raises(UnsupportedError, match=rf"{name}: expected .*got {value!r}"):
            scheduler()


def test_memory_savers_are_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    groups = config()
    groups["exec"]["features"].enable_memory_saver = True
    with installed(groups):
        register()
        with pytest.raises(
            UnsupportedError, match=r"enable_memory_saver: expected False, as .* got True"
        ):
            scheduler()


def test_a_scheduler_without_a_draft_attached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    register()
    with pytest.raises(UnsupportedError, match="a draft attached, got EAGLEWorkerV2"):
        scheduler(algorithm=False)


def test_drafts_and_verifications_without_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    register()
    worker = scheduler().draft_worker
    delattr(worker.draft_worker, plugin._ATTRIBUTE)
    for call in (
        lambda: worker.verify(SimpleNamespace()),
        lambda: worker.draft_worker._draft_extend_for_prefill(SimpleNamespace(), None, None),
    ):
        with pytest.raises(UnsupportedError, match="a draft attached, got EagleDraftWorker"):
            call()
