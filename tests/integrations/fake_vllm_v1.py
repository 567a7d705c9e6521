# SPDX-License-Identifier: Apache-2.0
"""vLLM's model runner V1, as far as the plugin uses it, without an engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microspec_kernels.integrations.vllm import v1

from .fake_vllm import DraftModel, config, installed

V, DIM, REQUESTS, LENGTH = 24, 8, 4, 32


class StepModel(DraftModel):
    """Step-3.5's: a norm for each step before the head."""

    def compute_logits(self, hidden_states: Tensor, spec_step_idx: int = 0) -> Tensor:
        return super().compute_logits(hidden_states.roll(spec_step_idx, -1))


class SpecDecodeBaseProposer:
    model_class = DraftModel

    def __init__(self, vllm_config: Any, runner: Any) -> None:
        self.vllm_config, self.hidden_size = vllm_config, DIM

    def load_model(self, target_model: Any) -> None:
        torch.manual_seed(3)
        self.model = self.model_class(torch.randn(V, DIM), V, V)

    def _greedy_sample(self, hidden_states: Tensor) -> Tensor:
        return self.model.compute_logits(hidden_states).argmax(-1)


class Step3p5MTPProposer(SpecDecodeBaseProposer):
    model_class = StepModel

    def _sample_draft_tokens_for_step(
        self, hidden_states: Tensor, sampling_metadata: Any, spec_step_idx: int
    ) -> tuple[Tensor, None]:
        return self.model.compute_logits(hidden_states, spec_step_idx).argmax(-1), None


class GPUModelRunner:
    """Rows of requests, which :meth:`step` samples the test's tokens for."""

    def __init__(self, vllm_config: Any, proposer: Any) -> None:
        self.requests: dict[str, Any] = {}
        self.input_batch = SimpleNamespace(
            req_ids=[],
            req_id_to_index={},
            num_reqs=0,
            token_ids_cpu=np.zeros((REQUESTS, LENGTH), dtype=np.int32),
        )
        mask = torch.zeros(REQUESTS, dtype=torch.bool)
        self.discard_request_mask = SimpleNamespace(np=mask.numpy(), gpu=mask)
        self.drafter = proposer(vllm_config, runner=self)
        self.drafter.load_model(torch.nn.Linear(40, 40))  # thrice the size of the LM head

    def _update_states(self, scheduler_output: Any) -> None:
        batch = self.input_batch
        for name in scheduler_output.finished_req_ids:
            del self.requests[name]
            batch.req_ids.remove(name)
        for new in scheduler_output.scheduled_new_reqs:
            tokens = new.prompt_token_ids
            self.requests[new.req_id] = SimpleNamespace(
                prompt_token_ids=tokens,
                num_tokens=len(tokens),
                sampling_params=SimpleNamespace(extra_args=new.extra_args),
            )
            batch.req_ids.append(new.req_id)
        batch.num_reqs = len(batch.req_ids)
        batch.req_id_to_index = {name: row for row, name in enumerate(batch.req_ids)}
        for name, row in batch.req_id_to_index.items():
            tokens = self.requests[name].prompt_token_ids
            batch.token_ids_cpu[row, : len(tokens)] = tokens

    def _sample(self, logits: Tensor, spec_decode_metadata: Any) -> Any:
        sampled = self.sampled
        logits.fill_(float("nan"))  # vLLM's sampler may write into the logits
        return SimpleNamespace(sampled_token_ids=sampled)

    def join(
        self, finished: tuple[str, ...] = (), extra_args: Any = None, **prompts: list[int]
    ) -> None:
        """Let requests with these prompts and extra arguments join, and others finish."""
        new = [
            SimpleNamespace(req_id=name, prompt_token_ids=tokens, extra_args=extra_args)
            for name, tokens in prompts.items()
        ]
        cached = SimpleNamespace(resumed_req_ids=set())
        self._update_states(
            SimpleNamespace(
                finished_req_ids=set(finished),
                scheduled_new_reqs=new,
                scheduled_cached_reqs=cached,
            )
        )

    def step(
        self, *sampled: list[int], logits: Tensor | None = None, drafts: list[int] | None = None
    ) -> None:
        """Sample these tokens for the rows; -1 follows the accepted ones.

        `drafts` are the numbers of verified drafts; None: vLLM makes no metadata for them.
        """
        self.sampled = torch.tensor(sampled, dtype=torch.int32)
        verified = None if drafts is None else SimpleNamespace(num_draft_tokens=drafts)
        self._sample(torch.zeros(len(sampled), V) if logits is None else logits, verified)


@contextmanager
def runner(steps: bool = False, **settings: Any) -> Iterator[Any]:
    """Make a runner of patched classes with these settings.

    `steps` drafts with a module for each step.
    """
    base = type("SpecDecodeBaseProposer", (SpecDecodeBaseProposer,), {})
    by_step = type("Step3p5MTPProposer", (Step3p5MTPProposer, base), {})
    made = type("GPUModelRunner", (GPUModelRunner,), {})
    modules: Any = {
        "vllm.v1.spec_decode.llm_base_proposer": {"SpecDecodeBaseProposer": base},
        "vllm.v1.spec_decode.step3p5": {"Step3p5MTPProposer": by_step},
        "vllm.v1.worker.gpu_model_runner": {"GPUModelRunner": made},
    }
    with installed(**modules):
        v1.install()
        yield made(config(V, microspec=settings or True), by_step if steps else base)
