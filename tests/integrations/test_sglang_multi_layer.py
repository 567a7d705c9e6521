# SPDX-License-Identifier: Apache-2.0
"""SGLang's drafts with a model for each step (multi-layer EAGLE), over one vocabulary."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.engine import SWITCH, Settings
from microspec_kernels.integrations.hooks import UnsupportedError
from microspec_kernels.integrations.sglang import plugin, register

from .fake_sglang import LlamaForCausalLMEagle3, config, installed
from .test_sglang_draft import BUSY, D, Request, V, active, head, towards

STEPS = 3


@pytest.fixture(autouse=True)
def _sglang() -> Iterator[None]:
    torch.manual_seed(0)
    with installed():
        yield


def make(heads: int, patched: bool = True, **settings: Any) -> Any:
    """Make a draft of STEPS models; with one head, all have the same rows, as of the target."""
    from sglang.srt.speculative.multi_layer_eagle_worker_v2 import MultiLayerEagleDraftWorker

    if patched:
        options = {"capacity": 8, "target_top_k": 1, "learn": False} | settings
        plugin._patch(Settings(**options), multi_layer=True)
    models = [LlamaForCausalLMEagle3(torch.randn(V + 4, D), V, V, None) for _ in range(STEPS)]
    if heads == 1:
        for model in models[1:]:
            model.lm_head.weight = models[0].lm_head.weight
    worker = MultiLayerEagleDraftWorker(models, V)
    worker.init_lm_head()
    return worker


def prefill(worker: Any, prompt: list[int], following: int) -> list[int]:
    batch = SimpleNamespace(reqs=[Request(prompt)], forward_mode=BUSY)
    drafts: Tensor = worker._draft_extend_for_prefill(batch, None, torch.tensor([following]))
    return drafts[0].tolist()


def wanted(worker: Any, tokens: set[int], following: int) -> list[int]:
    """Return the drafts from these tokens only."""
    allowed, drafts = sorted(tokens), [following]
    for runner in worker.draft_runner_list:
        model = runner.model
        logits = model.lm_head.weight[:V] @ model.embedding[drafts[-1]]
        drafts.append(allowed[int(logits[allowed].argmax())])
    return drafts[1:]


@pytest.mark.parametrize("mode", ["indexed", "packed"])
@pytest.mark.parametrize("heads", [1, STEPS])
def test_each_step_drafts_from_the_active_rows_of_its_own_head(heads: int, mode: str) -> None:
    from sglang.srt.speculative.multi_layer_eagle_worker_v2 import MultiLayerEagleWorkerV2

    worker = make(heads, mode=mode)
    for prompt, following in ([3, 8, 21], 22), ([40, 41, 9, 60, 33], 5):
        drafts = prefill(worker, prompt, following)
        assert active(worker) >= {*prompt, following}
        assert drafts == wanted(worker, active(worker), following)
    before = active(worker)
    result = SimpleNamespace(
        next_token_ids=torch.tensor([50, 51, 63, 63], dtype=torch.int32),
        accept_lens=torch.tensor([2], dtype=torch.int32),
        logits_output=SimpleNamespace(next_token_logits=towards(50, 51, 52, 53)),
    )
    batch = SimpleNamespace(result=result, forward_mode=BUSY, reqs=[Request([])])
    assert MultiLayerEagleWorkerV2(worker).verify(batch) is result
    assert {50, 51, 52, 53} <= active(worker) != before
    assert prefill(worker, [50], 51) == wanted(worker, active(worker), 51)
    assert len(head(worker)._others) == heads - 1


def test_with_all_tokens_active_it_drafts_as_without() -> None:
    worker = make(STEPS, patched=False)
    expected = prefill(worker, list(range(V)), 3)
    torch.manual_seed(0)
    assert prefill(make(STEPS, capacity=V), list(range(V)), 3) == expected


def test_new_weights_of_all_models() -> None:
    worker = make(STEPS, mode="packed")
    prefill(worker, [3, 8, 21], 22)
    weight = worker.draft_runner_list[2].model.lm_head.weight
    weight.data.copy_(torch.randn(V + 4, D))
    plugin.draft_of(worker).reload()
    assert prefill(worker, [3], 22) == wanted(worker, active(worker), 22)
    weight.data = weight.data.clone()
    with pytest.raises(UnsupportedError, match="update_weights"):
        plugin.draft_of(worker).reload()


def test_another_head_is_refused() -> None:
    worker = make(STEPS)
    model = worker.draft_runner_list[1].model
    model.lm_head = LlamaForCausalLMEagle3(torch.randn(V, D), V, V, None).lm_head
    with pytest.raises(UnsupportedError, match="expected the one that was attached to"):
        prefill(worker, [3], 5)


def test_the_switch_attaches(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(SWITCH, '{"capacity": 8, "learn": false}')
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.5.23")
    monkeypatch.setattr(plugin, "check_hook_points", lambda *points: None)
    groups = config()
    groups["spec"]["enable_multi_layer_eagle"] = True
    with installed(groups):
        from sglang.srt.managers.scheduler import Scheduler
        from sglang.srt.plugins.hook_registry import HookRegistry
        from sglang.srt.speculative.multi_layer_eagle_worker_v2 import MultiLayerEagleWorkerV2

        register()
        ((_, hook),) = HookRegistry.hooks
        arguments = SimpleNamespace(
            make_draft_worker=lambda: MultiLayerEagleWorkerV2(make(STEPS, patched=False))
        )
        scheduler = Scheduler.__new__(Scheduler)
        with caplog.at_level("INFO", "microspec_kernels"):
            hook(Scheduler.__init__, scheduler, arguments)
    assert "attached to MultiLayerEagleDraftWorker: " in caplog.text
    assert f", {STEPS} LM heads, SGLang" in caplog.text
