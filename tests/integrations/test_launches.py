# SPDX-License-Identifier: Apache-2.0
"""How many ops each plugin dispatches in a step, beside the engine's own."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from microspec_kernels.engine import EngineHead, Settings
from microspec_kernels.integrations.sglang import metrics as sglang_metrics
from microspec_kernels.integrations.sglang import plugin
from microspec_kernels.integrations.vllm import metrics as vllm_metrics
from microspec_kernels.integrations.vllm import v2
from microspec_kernels.integrations.vllm.attach import attach
from microspec_kernels.integrations.vllm.drafter import hold

from . import fake_vllm
from .fake_vllm_v1 import runner as v1_runner
from .launches import launched
from .test_sglang_draft import BUSY, ROWS, Request, patched, sglang  # noqa: F401
from .test_sglang_draft import V as SGLANG_V
from .test_vllm_attach import DIM, OFFSETS, V, draft_model

REQUESTS, DRAFTS = 3, 4
OBSERVE, GATHER, HEAD = (
    f"microspec::{name}" for name in ("vocab_observe_", "gather_rows_", "sparse_head")
)
MASK, MASKED = "aten::lt", "aten::where"
MAPPED = ["aten::lt", "aten::clamp", "aten::index", OBSERVE]
INDEXED, PACKED, D2T = {"target_top_k": 0}, {"target_top_k": 0, "mode": "packed"}, "d2t"

# What is allowed. A packed d2t head takes one more than the four.
SHARED = [
    ({}, None, ["aten::topk", MASK, MASKED, OBSERVE]),
    ({"target_top_k": 1}, None, ["aten::max", MASK, MASKED, OBSERVE]),
    ({"learn": False}, None, ["aten::topk", MASK, MASKED, OBSERVE]),
    (INDEXED, None, [MASK, MASKED, OBSERVE]),
    (PACKED, None, [MASK, MASKED, OBSERVE, GATHER]),
    (INDEXED, D2T, MAPPED),
    ({}, D2T, ["aten::topk", MASK, MASKED, "aten::index", OBSERVE]),
    (PACKED, D2T, [*MAPPED, GATHER]),
]
PER_REQUEST = [(settings | {"vocabulary": "request"}, d2t, ops) for settings, d2t, ops in SHARED]


@pytest.fixture(autouse=True)
def _between_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports launch more, at an interval of seconds or many steps."""
    for module in (sglang_metrics, vllm_metrics):
        monkeypatch.setattr(module.Metrics, "tick", lambda self: None)


def steady(step: Callable[[], Any]) -> list[str]:
    """Return what a step dispatches if the same requests ran in the step before."""
    step()
    ops = launched(step)
    assert launched(step) == ops
    return ops


@pytest.mark.parametrize(("settings", "d2t", "ops"), [*SHARED, *PER_REQUEST])
def test_vllm_v2(settings: dict[str, Any], d2t: str | None, ops: list[str]) -> None:
    with fake_vllm.installed():
        model = draft_model(OFFSETS if d2t else None)
        chosen = Settings(**({"capacity": 8} | settings))
        drafter = attach(
            "Speculator",
            model,
            fake_vllm.config(V),
            chosen,
            REQUESTS,
            target=fake_vllm.TARGET,
            hidden_size=DIM,
        )
        assert drafter is not None
    speculator = SimpleNamespace()
    runner = SimpleNamespace(speculator=speculator)
    for holder in (speculator, runner):
        hold(holder, drafter)
    drafter.begin(range(REQUESTS), [torch.arange(5)] * REQUESTS)
    sampled = torch.randint(0, V, (REQUESTS, DRAFTS + 1))
    num_sampled = torch.tensor([1, 5, 0], dtype=torch.int32)
    logits = torch.randn(REQUESTS * (DRAFTS + 1), V)
    batch = SimpleNamespace(
        num_reqs=REQUESTS,
        num_draft_tokens=REQUESTS * DRAFTS,
        idx_mapping_np=torch.tensor([2, 0, 1]).numpy(),
        cu_num_logits_np=(torch.arange(REQUESTS + 1) * (DRAFTS + 1)).numpy(),
    )
    output = SimpleNamespace(sampled_token_ids=sampled), num_sampled, None
    hidden = torch.randn(REQUESTS, DIM)
    arguments = {"self": speculator, "hidden_states": hidden, "idx_mapping": torch.arange(REQUESTS)}
    head = launched(lambda: v2._sample_draft(lambda: None, arguments))
    assert head[0] == HEAD and len(head) <= 2

    def step() -> None:
        v2._verify(lambda: None, {"self": runner, "logits": logits})
        v2._sample(lambda: output, {"self": runner, "input_batch": batch})
        verdict = {"self": speculator, "num_sampled": num_sampled}
        v2._observe_verification(lambda: None, verdict)

    assert steady(step) == ops


@pytest.mark.parametrize(
    ("settings", "ops"),
    [
        ({}, ["aten::topk", "aten::copy_", OBSERVE]),
        (INDEXED, [OBSERVE]),
        (PACKED, [OBSERVE, GATHER]),
        ({"learn": False}, ["aten::topk", "aten::copy_", OBSERVE]),
    ],
)
def test_vllm_v1(settings: dict[str, Any], ops: list[str]) -> None:
    with v1_runner(**({"capacity": 8} | settings)) as runner:
        runner.join(a=[1, 2], b=[3], c=[4])
        output = SimpleNamespace(sampled_token_ids=torch.randint(0, V, (3, DRAFTS + 1)).int())
        arguments = {"self": runner, "logits": torch.randn(15, V), "spec_decode_metadata": None}
        from microspec_kernels.integrations.vllm import v1

        assert steady(lambda: v1._sample(lambda: output, arguments)) == ops
        hidden = {"self": runner.drafter, "hidden_states": torch.randn(3, DIM)}
        head = launched(lambda: v1._greedy_sample(lambda: None, hidden))
        # Without learning, an empty vocabulary's -1 becomes a token.
        assert head == [HEAD] if settings.get("learn", True) else [HEAD, "aten::clamp"]


@pytest.mark.parametrize(
    ("settings", "d2t", "tokens"),
    [
        ({}, None, ["aten::topk", MASK, MASKED, OBSERVE]),
        (INDEXED, None, [MASK, MASKED, OBSERVE]),
        (INDEXED, D2T, MAPPED),
        (PACKED, None, [MASK, MASKED, OBSERVE, GATHER]),
    ],
)
def test_sglang(settings: dict[str, Any], d2t: str | None, tokens: list[str]) -> None:
    """Beside the tokens, the slots' columns in SGLang's logits are brought up to date."""
    worker = patched(ROWS if d2t else None, **({"learn": True, "target_top_k": 3} | settings))
    draft = plugin.draft_of(worker)
    assert draft is not None
    requests = [Request([1, 2]) for _ in range(REQUESTS)]
    nodes = DRAFTS + 1
    result = SimpleNamespace(
        next_token_ids=torch.randint(0, SGLANG_V, (REQUESTS * nodes,), dtype=torch.int32),
        accept_lens=torch.tensor([1, 5, 2], dtype=torch.int32),
        logits_output=SimpleNamespace(next_token_logits=torch.randn(REQUESTS * nodes, SGLANG_V)),
    )
    batch = SimpleNamespace(reqs=requests, forward_mode=BUSY, prefix_lens=[0] * REQUESTS)
    draft.prompts(batch, torch.zeros(REQUESTS, dtype=torch.int64))
    arguments = {"self": SimpleNamespace(draft_worker=worker), "batch": batch}
    ops = steady(lambda: plugin._verify(lambda: result, arguments))
    assert ops == [*tokens, "aten::index"]


def test_requests_that_begin_wait_for_nothing() -> None:
    """No value is read back, and a prompt is copied once."""
    head = EngineHead(torch.randn(V, DIM), Settings(capacity=8), num_groups=REQUESTS)
    prompts = [torch.arange(20, dtype=torch.int32) % V] * REQUESTS
    ops = launched(lambda: head.begin(range(REQUESTS), prompts))
    assert not {"aten::_local_scalar_dense", "aten::item", "aten::nonzero"} & set(ops)
    assert not any(name.startswith("aten::lift") for name in ops), "no list became a tensor"
