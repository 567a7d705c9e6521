# SPDX-License-Identifier: Apache-2.0
"""A failing hook ends the engine at its start, and takes the draft back to the engine later."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from microspec_kernels.integrations.hooks import Guard, UnsupportedError
from microspec_kernels.integrations.sglang import plugin
from microspec_kernels.integrations.vllm.drafter import drafter_of

from .fake_vllm_v1 import DIM, runner
from .test_sglang_draft import active, draft, head, patched, prefill, sglang  # noqa: F401

ERRORS = [RuntimeError("broken"), UnsupportedError("vllm: a hook", "this", "that")]


def fail(error: BaseException) -> Any:
    def hook(*_: Any, **__: Any) -> None:
        raise error

    return hook


@pytest.mark.parametrize("error", ERRORS, ids=["any", "unsupported"])
def test_the_first_failure_is_the_last(error: BaseException, caplog: Any) -> None:
    guard = Guard(logging.getLogger("engine"), alone=True, then="as before")
    assert guard.run(lambda: 1, lambda: 2) == 1
    with pytest.raises(type(error)):
        guard.run(fail(error), lambda: 2)
    guard.start()
    assert guard.run(fail(error), lambda: 2) == 2
    assert guard.run(lambda: 1, lambda: 2) == 2
    [record] = caplog.records
    assert record.levelname == "ERROR" and "as before" in record.getMessage()


def test_a_rank_does_not_go_on_without_the_others() -> None:
    guard = Guard(logging.getLogger("engine"), alone=False, then="")
    guard.start()
    with pytest.raises(RuntimeError, match="broken"):
        guard.run(fail(ERRORS[0]), lambda: 2)


def test_an_interrupt_is_no_failure() -> None:
    guard = Guard(logging.getLogger("engine"), alone=True, then="")
    guard.start()
    for error in (KeyboardInterrupt(), SystemExit(0)):
        with pytest.raises(type(error)):
            guard.run(fail(error), lambda: 2)
    assert not guard.failed


@pytest.mark.parametrize("where", ["begin", "observe", "argmax", "top_target_tokens"])
def test_vllm_goes_on_with_its_own_head(where: str, monkeypatch: Any, caplog: Any) -> None:
    with runner(capacity=4) as vllm:
        drafter = drafter_of(vllm)
        assert drafter is not None
        drafter.guard.start()
        monkeypatch.setattr(drafter.head, where, fail(ERRORS[0]))
        hidden = torch.randn(9, DIM)
        for step in range(2):
            vllm.join(**{f"r{step}": [1, 2]})
            vllm.step(*[[5]] * (step + 1))
            drafts = vllm.drafter._greedy_sample(hidden)
        assert torch.equal(drafts, vllm.drafter.model.compute_logits(hidden).argmax(-1))
        assert drafter_of(vllm) is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize("dense_steps", ["auto", False])
def test_sglang_goes_on(dense_steps: Any, monkeypatch: Any, caplog: Any) -> None:
    """With its own head, or, where it may not, with the tokens active now."""
    worker = patched(dense_steps=dense_steps)
    attached = plugin.draft_of(worker)
    assert attached is not None
    attached.guard.start()
    prefill(worker, [3, 8, 21], 5)
    before = active(worker)
    monkeypatch.setattr(head(worker), "begin", fail(ERRORS[0]))
    for prompt in ([40], [41]):
        tokens = set(draft(worker, prefill(worker, prompt, 9)).flatten().tolist())
        assert (tokens <= before) == (not dense_steps) and before == active(worker)
    owner = SimpleNamespace(draft_worker=worker)
    batch = SimpleNamespace(forward_mode=SimpleNamespace(is_idle=lambda: False))
    assert plugin._verify(lambda: "result", {"self": owner, "batch": batch}) == "result"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
