# SPDX-License-Identifier: Apache-2.0
"""Hooks for model runner V1 (vllm/v1/worker/gpu_model_runner.py).

Its draft's LM head always runs eagerly. The row of a request changes from step to step, so all
requests share one vocabulary. The runner calls `GPUModelRunner._sample` in real steps only, after
the target and before the draft; the vocabulary observes tokens there.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from microspec_kernels.integrations.hooks import RequestNumbers, UnsupportedError
from microspec_kernels.integrations.hooks.wrap import Original, wrap

from .attach import attach
from .draft_lm_head import ComputeLogits
from .drafter import Drafter, drafter_of, hold
from .switch import settings_of

_NUMBERS = "microspec_numbers"


def install() -> None:
    """Patch the classes of model runner V1. The hooks do nothing if the switch is off."""
    from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer
    from vllm.v1.spec_decode.step3p5 import Step3p5MTPProposer
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    wrap(SpecDecodeBaseProposer, "__init__", _make_proposer)
    wrap(SpecDecodeBaseProposer, "load_model", _load_draft_model)
    wrap(SpecDecodeBaseProposer, "_greedy_sample", _greedy_sample)
    wrap(Step3p5MTPProposer, "_sample_draft_tokens_for_step", _sample_step)
    wrap(GPUModelRunner, "_update_states", _update_states)
    wrap(GPUModelRunner, "_sample", _sample)


def _make_proposer(original: Original, arguments: Mapping[str, Any]) -> None:
    original()
    arguments["self"].microspec_runner = arguments["runner"]


def _load_draft_model(original: Original, arguments: Mapping[str, Any]) -> None:
    original()
    proposer = arguments["self"]
    config, runner = proposer.vllm_config, proposer.microspec_runner
    settings = settings_of(config)
    if settings is None:
        return
    if settings.vocabulary != "shared":
        where = "vllm: vocabulary"
        raise UnsupportedError(where, "'shared' with model runner V1", repr(settings.vocabulary))
    compute_logits = None
    if hasattr(proposer, "_sample_draft_tokens_for_step"):  # one module for each step
        compute_logits = _logits_of_step(proposer.model)
    # Preempted requests keep their number.
    max_requests = 2 * config.scheduler_config.max_num_seqs
    drafter = attach(
        type(proposer).__name__,
        proposer.model,
        config,
        settings,
        max_requests,
        target=arguments["target_model"],
        hidden_size=proposer.hidden_size,
        compute_logits=compute_logits,
    )
    setattr(runner, _NUMBERS, RequestNumbers(max_requests))
    for holder in (proposer, runner):
        hold(holder, drafter)


def _greedy_sample(original: Original, arguments: Mapping[str, Any]) -> Any:
    drafter, hidden = drafter_of(arguments["self"]), arguments["hidden_states"]
    if drafter is None or drafter.leaves_to_vllm():
        return original()
    return drafter.guard.run(lambda: drafter.draft(hidden), original)


def _logits_of_step(model: Any) -> ComputeLogits:
    return lambda hidden, step: model.compute_logits(hidden, spec_step_idx=step)


def _sample_step(original: Original, arguments: Mapping[str, Any]) -> Any:
    drafter, hidden = drafter_of(arguments["self"]), arguments["hidden_states"]
    if drafter is None or drafter.leaves_to_vllm():
        return original()
    step = arguments["spec_step_idx"]
    return drafter.guard.run(lambda: (drafter.draft(hidden, step=step), None), original)


def _update_states(original: Original, arguments: Mapping[str, Any]) -> Any:
    """Begin the requests that join or come back after preemption."""
    updated = original()
    runner, scheduled = arguments["self"], arguments["scheduler_output"]
    drafter = drafter_of(runner)
    if drafter is not None:
        drafter.guard.run(lambda: _begin(drafter, runner, scheduled), lambda: None)
    return updated


def _begin(drafter: Drafter, runner: Any, scheduled: Any) -> None:
    numbers: RequestNumbers = getattr(runner, _NUMBERS)
    # In the same order on all ranks: these are sets.
    for request_id in sorted(scheduled.finished_req_ids):
        numbers.end(request_id)
        drafter.leave(request_id)
    joined = [request.req_id for request in scheduled.scheduled_new_reqs]
    joined += sorted(scheduled.scheduled_cached_reqs.resumed_req_ids)
    joined = [
        request_id
        for request_id in joined
        if not drafter.join(request_id, request_id, runner.requests[request_id].sampling_params)
    ]
    if joined:
        begun = [numbers.begin(request_id) for request_id in joined]
        drafter.begin(begun, [_text(runner, request_id) for request_id in joined])


def _text(runner: Any, request_id: str) -> Tensor:
    """Return the request's tokens so far, int32 [n], in the memory of vLLM's batch."""
    batch, request = runner.input_batch, runner.requests[request_id]
    row = batch.req_id_to_index[request_id]
    length = 0 if request.prompt_token_ids is None else request.num_tokens  # None: embeddings
    return torch.from_numpy(batch.token_ids_cpu[row, :length])


def _sample(original: Original, arguments: Mapping[str, Any]) -> Any:
    """Observe the step's target tokens before the draft's next step."""
    runner, logits = arguments["self"], arguments["logits"]
    verified = arguments["spec_decode_metadata"]
    drafter = drafter_of(runner)
    if drafter is None:
        return original()
    if verified is not None and any(verified.num_draft_tokens):
        drafter.check_use()
    drafter.guard.run(lambda: drafter.keep(logits), lambda: None)
    output = original()
    sampled = output.sampled_token_ids
    drafter.guard.run(lambda: _observe(drafter, runner, sampled, verified), lambda: None)
    return output


def _observe(drafter: Drafter, runner: Any, sampled: Tensor, verified: Any) -> None:
    """Observe the sampled tokens [B, n], which have -1 after the accepted ones."""
    batch = runner.input_batch
    count = batch.num_reqs
    requests = getattr(runner, _NUMBERS).of(batch.req_ids[:count])
    discarded = runner.discard_request_mask
    if discarded.np[:count].any():  # a part of a prompt is followed by a token of no text
        sampled = sampled.masked_fill(discarded.gpu[:count, None], -1)
    opted_out, rows = drafter.opted_out_of(batch.req_ids[:count]), None
    if opted_out is not None and verified is not None:
        rows = [drafts + 1 for drafts in verified.num_draft_tokens]
    drafter.observe(sampled, requests, opted_out=opted_out, verified_rows=rows)
