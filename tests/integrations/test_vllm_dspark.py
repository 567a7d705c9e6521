# SPDX-License-Identifier: Apache-2.0
"""DSpark in vLLM's model runner V2: one call of the LM head for a block, then a bias a position."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.integrations.vllm import v2
from microspec_kernels.integrations.vllm.drafter import drafter_of

from .fake_vllm import TARGET, V2, DraftModel, VocabParallelEmbedding, config, installed
from .test_vllm_attach import OFFSETS

V, DIM, RANK, SLOTS, STEPS = 24, 8, 4, 4, 3


class DSparkModel(DraftModel):
    """A draft whose tokens also depend on the token before, by a low-rank head over V."""

    def __init__(self, offsets: Tensor | None) -> None:
        rows = V if offsets is None else len(offsets)
        super().__init__(torch.randn(rows, DIM), rows, V, offsets)
        self.embed = torch.randn(V, RANK)
        self.markov = VocabParallelEmbedding(torch.randn(rows, RANK), rows)

    def compute_draft_logits(self, hidden_states: Tensor) -> Tensor:
        return self.logits_processor(self.lm_head, self.norm(hidden_states))

    def markov_bias(self, tokens: Tensor) -> Tensor:
        return self.logits_processor(self.markov, self.embed[tokens])


class DraftModelSpeculator:
    def __init__(self, vllm_config: Any, offsets: Tensor | None) -> None:
        self.vllm_config, self.max_num_reqs, self.offsets = vllm_config, SLOTS, offsets
        self.hidden_size = 3 * DIM  # what DeepSeek-V4's MTP would read
        self.draft_model_config = SimpleNamespace(get_hidden_size=lambda: DIM)

    def load_model(self, target_model: Any) -> None:
        self.model = DSparkModel(self.offsets)

    def observe_verification(self, num_sampled: Tensor) -> None: ...

    def sample_draft(
        self, hidden_states: Tensor, idx_mapping: Tensor, draft_logits: Tensor | None = None
    ) -> Tensor:
        raise AssertionError("DSpark samples by itself")


class DSparkSpeculator(DraftModelSpeculator):
    def load_model(self, target_model: Any) -> None:
        super().load_model(target_model)
        self.sample_idx_mapping = torch.full((SLOTS * STEPS,), -1)

    def capture(self) -> None: ...

    def _sample_sequential(self, head_hidden: Tensor, newest: Tensor) -> Tensor:
        """Return the drafts [B, STEPS] for hidden states [B * STEPS, D] and newest tokens [B]."""
        model, drafts = self.model, [newest]
        logits = model.compute_draft_logits(head_hidden).view(len(newest), STEPS, -1)
        for position in range(STEPS):
            best = (logits[:, position] + model.markov_bias(drafts[-1])).argmax(-1)
            drafts.append(best if self.offsets is None else best + self.offsets[best])
        return torch.stack(drafts[1:], dim=1)


@pytest.fixture
def make() -> Any:
    def nothing(self: Any) -> None: ...

    names = "load_model", "add_requests", "sample"
    runner = type("GPUModelRunner", (), dict.fromkeys(names, nothing))
    kinds = {
        name: type(name, (), {"__call__": nothing}) for name in ("Sampler", "RejectionSampler")
    }
    modules = {
        f"{V2}.model_runner": {"GPUModelRunner": runner},
        f"{V2}.sample.sampler": {"Sampler": kinds["Sampler"]},
        f"{V2}.spec_decode.rejection_sampler": {"RejectionSampler": kinds["RejectionSampler"]},
        f"{V2}.spec_decode.speculator": {"DraftModelSpeculator": DraftModelSpeculator},
    }
    with installed(**modules), pytest.MonkeyPatch.context() as patch:
        for name in ("load_model", "sample_draft", "observe_verification"):
            patch.setattr(DraftModelSpeculator, name, vars(DraftModelSpeculator)[name])
        v2.install()

        def loaded(offsets: Tensor | None = None, **settings: Any) -> DSparkSpeculator:
            torch.manual_seed(3)
            chosen = {"capacity": V, "target_top_k": 1, "learn": False} | settings
            speculator = DSparkSpeculator(config(V, microspec=chosen), offsets)
            speculator.load_model(TARGET)
            return speculator

        yield loaded


def wanted(speculator: Any, hidden: Tensor, newest: Tensor, active: list[list[int]]) -> Tensor:
    """Return the drafts over the active rows of each text, [B, STEPS]."""
    model, drafts = speculator.model, torch.empty(len(newest), STEPS, dtype=torch.int64)
    for text, rows in enumerate(active):
        before = newest[text]
        for position in range(STEPS):
            logits = model.lm_head.weight @ hidden[text * STEPS + position]
            logits += model.markov.weight @ model.embed[before]
            row = rows[int(logits[rows].argmax())]
            before = torch.tensor(row)
            if speculator.offsets is not None:
                before = row + speculator.offsets[row]
            drafts[text, position] = before
    return drafts


@pytest.mark.parametrize("vocabulary", ["shared", "request"])
@pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["all", "d2t"])
def test_a_block_is_drafted_from_the_active_tokens(
    offsets: Any, vocabulary: str, make: Any
) -> None:
    speculator = make(offsets, vocabulary=vocabulary, capacity=6)
    drafter = drafter_of(speculator)
    assert drafter is not None
    tokens = torch.arange(V) if offsets is None else torch.arange(len(OFFSETS)) + OFFSETS
    prompts = {2: tokens[:3], 0: tokens[4:7]}
    drafter.begin(list(prompts), list(prompts.values()))
    speculator.sample_idx_mapping[: 2 * STEPS] = torch.tensor([2] * STEPS + [0] * STEPS)
    hidden, newest = torch.randn(2 * STEPS, DIM), torch.tensor([5, 20])
    drafts = speculator._sample_sequential(hidden, newest)
    active = [[0, 1, 2], [4, 5, 6]]
    if vocabulary == "shared":
        active = [active[0] + active[1]] * 2
    assert torch.equal(drafts, wanted(speculator, hidden, newest, active))
    drafter.check_use()


def test_all_tokens_draft_as_without_the_plugin(make: Any) -> None:
    speculator = make()
    drafter = drafter_of(speculator)
    assert drafter is not None
    drafter.begin([0], [torch.arange(V)])
    hidden, newest = torch.randn(STEPS, DIM), torch.tensor([5])
    drafts = speculator._sample_sequential(hidden, newest)
    del speculator.model.compute_draft_logits
    assert torch.equal(drafts, speculator._sample_sequential(hidden, newest))


def test_a_failing_hook_gives_the_block_back(make: Any) -> None:
    speculator = make(capacity=4)
    drafter = drafter_of(speculator)
    assert drafter is not None
    drafter.begin([0], [torch.arange(3)])
    drafter.guard.start()
    drafter._steps = []
    hidden, newest = torch.randn(STEPS, DIM), torch.tensor([5])
    every = [list(range(V))]
    drafts = speculator._sample_sequential(hidden, newest)
    assert torch.equal(drafts, wanted(speculator, hidden, newest, every))
    assert drafter_of(speculator) is None
