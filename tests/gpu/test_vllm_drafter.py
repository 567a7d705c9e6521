# SPDX-License-Identifier: Apache-2.0
"""vLLM's plugin in model runner V2: drafts in a graph, the target's steps between replays."""

from typing import Any

import pytest
import torch
from integrations.fake_vllm import DraftModel, config, installed
from torch import Tensor

from microspec_kernels.engine import Settings
from microspec_kernels.integrations.vllm.attach import attach
from microspec_kernels.integrations.vllm.drafter import Drafter

from .test_engine_head import no_waiting
from .test_graphs import captured

DEVICE = "cuda"
V, ROWS, DIM, SLOTS, STEPS = 60, 40, 16, 4, 200
OFFSETS = torch.arange(ROWS) // 2


def drafter_on(device: str, settings: Settings) -> Drafter:
    """Make the same drafter on any device; it has small integers, so that each logit is exact."""
    weight = torch.randint(-3, 4, (ROWS + 8, DIM), generator=torch.Generator().manual_seed(2))
    model: Any = DraftModel(weight.float().to(device), ROWS, V, OFFSETS.to(device))
    model.norm = lambda hidden: hidden.roll(1, -1)
    return attach(
        "Speculator",
        model,
        config(V),
        settings,
        SLOTS,
        target=torch.nn.Linear(1, 1),
        hidden_size=DIM,
    )


@pytest.mark.parametrize("vocabulary", ["shared", "request"])
@pytest.mark.parametrize("mode", ["indexed", "packed"])
def test_captured_drafts_follow_what_is_observed(vocabulary: Any, mode: Any) -> None:
    """Each replay equals the plugin on the CPU; nothing waits for the device."""
    rng = torch.Generator().manual_seed(1)
    settings = Settings(capacity=12, vocabulary=vocabulary, mode=mode)
    with installed():
        here, there = drafter_on("cpu", settings), drafter_on(DEVICE, settings)
    hidden = torch.zeros(SLOTS + 1, DIM, device=DEVICE)
    slots = torch.zeros(SLOTS + 1, dtype=torch.int64, device=DEVICE)
    drafts = torch.empty(SLOTS + 1, dtype=torch.int64, device=DEVICE)
    replay = captured(lambda: drafts.copy_(there.draft(hidden, slots)))
    padding = torch.tensor([-1 if vocabulary == "request" else 0])
    for index in range(STEPS):
        step = step_of(rng)
        joins = [index % SLOTS] if index % 5 == 0 else []
        prompts = [torch.tensor([index % V, V - 1])] * len(joins)
        logits, sampled, lengths = (value.to(DEVICE) for value in step[:3])
        numbers = step[3].tolist()
        with no_waiting():
            there.begin(joins, prompts)
            take(there, logits, sampled, lengths, numbers)
        here.begin(joins, prompts)
        take(here, *step[:3], numbers)
        now = torch.randint(-3, 4, hidden.shape, generator=rng).float()
        hidden.copy_(now)
        slots.copy_(torch.cat((step[3], padding)))
        replay()
        assert torch.equal(drafts.cpu(), here.draft(now, slots.cpu())), index
    assert there.stats() == here.stats()


def step_of(rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return two rows of logits and two tokens for every slot, their numbers, and the slots."""
    return (
        torch.rand(2 * SLOTS, V, generator=rng),
        torch.randint(0, V, (SLOTS, 2), generator=rng),
        torch.randint(0, 3, (SLOTS,), generator=rng, dtype=torch.int32),
        torch.randperm(SLOTS, generator=rng),
    )


def take(
    drafter: Drafter, logits: Tensor, sampled: Tensor, lengths: Tensor, slots: list[int]
) -> None:
    drafter.keep(logits)
    drafter.observe(sampled, slots, lengths, [slot for slot in slots for _ in range(2)])
