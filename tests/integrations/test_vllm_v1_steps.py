# SPDX-License-Identifier: Apache-2.0
"""vLLM's model runner V1: which of its drafts come from the attached LM head."""

from typing import Any

import pytest
import torch

from microspec_kernels.integrations.hooks import UnsupportedError
from microspec_kernels.integrations.vllm.drafter import drafter_of

from .fake_vllm_v1 import DIM, V, runner


def test_a_head_for_a_block_of_drafts() -> None:
    """DFlash and P-EAGLE draft all positions of all requests in one call."""
    with runner(capacity=V) as vllm:
        vllm.join(a=list(range(V)))
        hidden = torch.randn(4 * 5, DIM)
        want = vllm.drafter.model.compute_logits(hidden).argmax(-1)
        assert torch.equal(vllm.drafter._greedy_sample(hidden), want)


@pytest.mark.parametrize("index", [0, 1])
def test_each_step_of_step_3p5(index: int) -> None:
    with runner(steps=True, capacity=V) as vllm:
        vllm.join(a=list(range(V)))
        hidden = torch.randn(40, DIM)
        want = vllm.drafter.model.compute_logits(hidden, index).argmax(-1)
        drafts, probabilities = vllm.drafter._sample_draft_tokens_for_step(
            hidden, None, spec_step_idx=index
        )
        assert torch.equal(drafts, want) and probabilities is None
        vllm.step([1, 2], drafts=[1])


def test_a_step_of_step_3p5_that_fails_is_done_by_vllm() -> None:
    with runner(steps=True, capacity=V) as vllm:
        drafter = drafter_of(vllm)
        assert drafter is not None
        drafter.guard.start()
        drafter._steps = []
        hidden = torch.randn(4, DIM)
        want = vllm.drafter.model.compute_logits(hidden, 1).argmax(-1)
        drafts, _ = vllm.drafter._sample_draft_tokens_for_step(hidden, None, spec_step_idx=1)
        assert torch.equal(drafts, want) and drafter_of(vllm) is None


@pytest.mark.parametrize("started", [False, True])
def test_drafts_that_came_another_way_are_refused(started: bool) -> None:
    """Also after the start: vLLM's first real step comes after it."""
    with runner(capacity=V) as vllm:
        vllm.join(a=[1])
        drafter: Any = drafter_of(vllm)
        drafter.guard.started = started
        vllm.step([1])
        vllm.step([1], drafts=[0])  # so vLLM runs the parts of prompts
        with pytest.raises(
            UnsupportedError, match="the first drafts: expected drafts by the attached"
        ):
            vllm.step([3, 4], drafts=[1])
