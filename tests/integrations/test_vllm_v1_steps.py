# SPDX-License-Identifier: Apache-2.0
"""vLLM's model runner V1: which of its drafts come from the attached LM head."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.integrations.hooks import UnsupportedError
from microspec_kernels.integrations.vllm import v1
from microspec_kernels.integrations.vllm.drafter import drafter_of

from .fake_vllm import DraftModel, config, installed

V, DIM = 24, 8


class StepModel(DraftModel):
    """Step-3.5's: a norm for each step before the head."""

    def compute_logits(self, hidden_states: Tensor, spec_step_idx: int = 0) -> Tensor:
        return super().compute_logits(hidden_states.roll(spec_step_idx, -1))


class SpecDecodeBaseProposer:
    def __init__(self, vllm_config: Any, runner: Any = None) -> None:
        self.vllm_config, self.hidden_size = vllm_config, DIM

    def load_model(self, target_model: Any) -> None:
        torch.manual_seed(3)
        self.model = StepModel(torch.randn(V, DIM), V, V)

    def _greedy_sample(self, hidden_states: Tensor) -> Tensor:
        return self.model.compute_logits(hidden_states).argmax(-1)


class Step3p5MTPProposer(SpecDecodeBaseProposer):
    def _sample_draft_tokens_for_step(
        self, hidden_states: Tensor, sampling_metadata: Any, spec_step_idx: int
    ) -> tuple[Tensor, None]:
        return self.model.compute_logits(hidden_states, spec_step_idx).argmax(-1), None


class GPUModelRunner:
    def __init__(self, kind: type, vllm_config: Any) -> None:
        self.input_batch = SimpleNamespace(num_reqs=1)
        self.drafter = kind(vllm_config, runner=self)
        self.drafter.load_model(None)

    def _update_states(self, scheduler_output: Any) -> None: ...

    def _sample(self, logits: Tensor, spec_decode_metadata: Any) -> Any:
        return SimpleNamespace(sampled_token_ids=logits[-1:].argmax(-1)[None])


@pytest.fixture
def make() -> Any:
    """Return a loaded runner of new classes, because the plugin patches them."""
    base = type("SpecDecodeBaseProposer", (SpecDecodeBaseProposer,), {})
    steps = type("Step3p5MTPProposer", (Step3p5MTPProposer, base), {})
    runner = type("GPUModelRunner", (GPUModelRunner,), {})
    modules = {
        "vllm.v1.spec_decode.llm_base_proposer": {"SpecDecodeBaseProposer": base},
        "vllm.v1.spec_decode.step3p5": {"Step3p5MTPProposer": steps},
        "vllm.v1.worker.gpu_model_runner": {"GPUModelRunner": runner},
    }
    with installed(**modules):
        v1.install()
        yield lambda kind: runner(
            {"plain": base, "steps": steps}[kind], config(V, microspec={"capacity": V})
        )


def learn(runner: Any) -> None:
    drafter = drafter_of(runner)
    assert drafter is not None
    drafter.begin([0], [list(range(V))])


def step(runner: Any, text: list[int], verified: bool, drafts: bool = True) -> None:
    runner.input_ids = SimpleNamespace(gpu=torch.tensor(text))
    runner.query_start_loc = SimpleNamespace(np=[0, len(text)])
    counts = [len(text) - 1 if drafts else 0]
    metadata = SimpleNamespace(
        num_draft_tokens=counts, cu_num_draft_tokens=torch.tensor(counts).cumsum(0)
    )
    if not verified:
        metadata = None
    runner._sample(torch.randn(len(text), V), metadata)


def test_a_head_for_a_block_of_drafts(make: Any) -> None:
    """DFlash and P-EAGLE draft all positions of all requests in one call."""
    runner = make("plain")
    learn(runner)
    hidden = torch.randn(4 * 5, DIM)
    want = runner.drafter.model.compute_logits(hidden).argmax(-1)
    assert torch.equal(runner.drafter._greedy_sample(hidden), want)


@pytest.mark.parametrize("index", [0, 1])
def test_each_step_of_step_3p5(make: Any, index: int) -> None:
    runner = make("steps")
    learn(runner)
    hidden = torch.randn(40, DIM)
    want = runner.drafter.model.compute_logits(hidden, index).argmax(-1)
    drafts, probabilities = runner.drafter._sample_draft_tokens_for_step(
        hidden, None, spec_step_idx=index
    )
    assert torch.equal(drafts, want) and probabilities is None
    step(runner, [1, 2], verified=True)


def test_drafts_that_came_another_way_are_refused(make: Any) -> None:
    runner = make("plain")
    step(runner, [1, 2], verified=False)
    step(runner, [1, 2], verified=True, drafts=False)  # so vLLM runs the parts of prompts
    with pytest.raises(UnsupportedError, match="the first drafts: expected drafts by the attached"):
        step(runner, [3, 4], verified=True)
