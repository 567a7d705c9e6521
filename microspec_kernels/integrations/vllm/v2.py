# SPDX-License-Identifier: Apache-2.0
"""Hooks for model runner V2 (vllm/v1/worker/gpu).

Replayed graphs make its drafts, LM head included: `sample_draft` runs when they are captured. The
runner calls `GPUModelRunner.sample` eagerly between the target's graph and the draft's, in real
steps only; the vocabulary observes tokens there. State that both use lies at fixed addresses.
"""

from collections.abc import Mapping
from typing import Any

import torch

from microspec_kernels.integrations.hooks.wrap import Original, wrap

from .attach import attach
from .drafter import drafter_of, hold
from .switch import settings_of


def install() -> None:
    """Patch the classes of model runner V2. The hooks do nothing if the switch is off."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu.sample.sampler import Sampler
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler
    from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

    wrap(DraftModelSpeculator, "load_model", _load_draft_model)
    wrap(DraftModelSpeculator, "sample_draft", _sample_draft)
    wrap(GPUModelRunner, "load_model", _load_model)
    wrap(GPUModelRunner, "add_requests", _add_requests)
    wrap(GPUModelRunner, "sample", _sample)
    wrap(Sampler, "__call__", _verify)
    wrap(RejectionSampler, "__call__", _verify)


def _load_draft_model(original: Original, arguments: Mapping[str, Any]) -> None:
    original()
    speculator = arguments["self"]
    settings = settings_of(speculator.vllm_config)
    if settings is not None:
        drafter = attach(
            type(speculator).__name__,
            speculator.model,
            speculator.vllm_config,
            settings,
            max_requests=speculator.max_num_reqs,
            hidden_size=speculator.hidden_size,
            # Since vLLM 0.32, which passes the step to multi-token prediction with several modules.
            compute_logits=getattr(speculator, "compute_draft_logits", None),
        )
        hold(speculator, drafter)


def _load_model(original: Original, arguments: Mapping[str, Any]) -> Any:
    loaded = original()
    runner = arguments["self"]
    drafter = drafter_of(runner.speculator)
    if drafter is not None:
        for holder in (runner, runner.sampler, runner.rejection_sampler):
            hold(holder, drafter)
    return loaded


def _sample_draft(original: Original, arguments: Mapping[str, Any]) -> Any:
    drafter = drafter_of(arguments["self"])
    if drafter is None:
        return original()
    hidden, request_index = arguments["hidden_states"], arguments["idx_mapping"]
    return drafter.draft(hidden, request_index, arguments.get("spec_step_idx", 0))


def _add_requests(original: Original, arguments: Mapping[str, Any]) -> Any:
    """Begin every request that joins, also after preemption."""
    added = original()
    runner, new = arguments["self"], arguments["scheduler_output"].scheduled_new_reqs
    drafter = drafter_of(runner)
    if drafter is not None and new:
        request_index = [runner.req_states.req_id_to_index[request.req_id] for request in new]
        drafter.begin(request_index, [_cached(request) for request in new])
    return added


def _cached(request: Any) -> list[int]:
    tokens: list[int] = request.prefill_token_ids[: request.num_computed_tokens]
    return tokens


def _verify(original: Original, arguments: Mapping[str, Any]) -> Any:
    drafter = drafter_of(arguments["self"])
    if drafter is not None:
        drafter.keep(arguments["logits"], arguments["input_batch"].expanded_idx_mapping)
    return original()


def _sample(original: Original, arguments: Mapping[str, Any]) -> Any:
    """Observe the step's target tokens before the draft's next step."""
    drafter = drafter_of(arguments["self"])
    if drafter is not None and arguments["input_batch"].num_draft_tokens > 0:
        drafter.check_use()
    sampled = original()
    if drafter is not None:
        output, num_sampled, _ = sampled
        batch, tokens = arguments["input_batch"], output.sampled_token_ids
        starts, rows = batch.query_start_loc, batch.cu_num_logits
        there = torch.arange(tokens.size(1), device=tokens.device) < num_sampled[:, None]
        drafter.observe(
            batch.input_ids[: batch.num_tokens],
            tokens.where(there, -1),
            rows[: batch.num_reqs + 1].diff() > 1,
            batch.idx_mapping[: batch.num_reqs],
            starts[: batch.num_reqs + 1].diff(),
        )
    return sampled
