# SPDX-License-Identifier: Apache-2.0
"""Hooks for model runner V2 (vllm/v1/worker/gpu).

Replayed graphs make its drafts, LM head included: `sample_draft` runs when they are captured, once
with the active vocabulary and once with vLLM's own LM head (dense_graphs.py). The runner samples
and starts to copy its output to the host. It then calls `observe_verification` eagerly, in real
steps only; the vocabulary observes tokens there, so that the copy does not wait, and the next
step's head is chosen. State that both use lies at fixed addresses.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from microspec_kernels.integrations.hooks.wrap import Original, wrap

from .attach import attach
from .dense_graphs import capture_both
from .drafter import Drafter, drafter_of, hold, is_decided
from .switch import settings_of

_SAMPLED = "microspec_sampled"


def install() -> None:
    """Patch the classes of model runner V2. The hooks do nothing if the switch is off."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu.sample.sampler import Sampler
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler
    from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

    wrap(DraftModelSpeculator, "load_model", _load_draft_model)
    wrap(DraftModelSpeculator, "sample_draft", _sample_draft)
    wrap(DraftModelSpeculator, "observe_verification", _observe_verification)
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
        in_a_block = hasattr(speculator, "_sample_sequential")  # DSpark
        drafter = attach(
            type(speculator).__name__,
            speculator.model,
            speculator.vllm_config,
            settings,
            max_requests=speculator.max_num_reqs,
            target=arguments["target_model"],
            # DSpark's head reads the draft's own width also where DeepSeek-V4's MTP reads several.
            hidden_size=speculator.draft_model_config.get_hidden_size()
            if in_a_block
            else speculator.hidden_size,
            # Since vLLM 0.32, which passes the step to multi-token prediction with several modules.
            compute_logits=getattr(speculator, "compute_draft_logits", None),
        )
        hold(speculator, drafter)
        wrap(type(speculator), "capture", _capture)
        if in_a_block and drafter is not None:
            _replace_block_logits(speculator)


def _capture(original: Original, arguments: Mapping[str, Any]) -> None:
    drafter = drafter_of(arguments["self"])
    if drafter is None:
        original()
    else:
        capture_both(arguments["self"], original, drafter.choice)


def _replace_block_logits(speculator: Any) -> None:
    """Let DSpark's logits of a block, all positions of all requests, be the active tokens'.

    DSpark then adds to each position a bias by the token before it, over all of V, and chooses.
    Inactive tokens have -inf, and so have none of its choices. The bias has an LM head of its own,
    which stays as it is.
    """
    model = speculator.model
    dense = model.compute_draft_logits

    def compute_draft_logits(hidden_states: Tensor) -> Any:
        drafter = drafter_of(speculator)
        if drafter is None or drafter.leaves_to_vllm():
            return dense(hidden_states)
        request_index = speculator.sample_idx_mapping[: len(hidden_states)]
        return drafter.guard.run(
            lambda: drafter.draw(lambda: dense(hidden_states), request_index),
            lambda: dense(hidden_states),
        )

    model.compute_draft_logits = compute_draft_logits


def _load_model(original: Original, arguments: Mapping[str, Any]) -> Any:
    loaded = original()
    runner = arguments["self"]
    if is_decided(runner.speculator):
        drafter = drafter_of(runner.speculator)
        for holder in (runner, runner.sampler, runner.rejection_sampler):
            hold(holder, drafter)
    return loaded


def _sample_draft(original: Original, arguments: Mapping[str, Any]) -> Any:
    drafter = drafter_of(arguments["self"])
    if drafter is None or drafter.leaves_to_vllm():
        return original()
    hidden, request_index = arguments["hidden_states"], arguments["idx_mapping"]
    step = arguments.get("spec_step_idx", 0)
    if arguments.get("draft_logits") is not None:
        return drafter.guard.run(lambda: drafter.draw(original, request_index, step), original)
    return drafter.guard.run(lambda: drafter.draft(hidden, request_index, step), original)


def _add_requests(original: Original, arguments: Mapping[str, Any]) -> Any:
    """Begin every request that joins, also after preemption."""
    added = original()
    runner, new = arguments["self"], arguments["scheduler_output"].scheduled_new_reqs
    drafter = drafter_of(runner)
    if drafter is not None and new:
        drafter.guard.run(lambda: _begin(drafter, runner.req_states, new), lambda: None)
    return added


def _begin(drafter: Drafter, states: Any, new: Sequence[Any]) -> None:
    joining = []
    for request in new:
        index = states.req_id_to_index[request.req_id]
        if not drafter.join(index, request.req_id, request.sampling_params):
            joining.append((index, request))
    # The runner has just written these rows, on the device or where the device can read them.
    rows = states.all_token_ids.gpu
    prompts = [rows[index, : len(request.prefill_token_ids)] for index, request in joining]
    drafter.begin([index for index, _ in joining], prompts)


def _verify(original: Original, arguments: Mapping[str, Any]) -> Any:
    drafter = drafter_of(arguments["self"])
    if drafter is not None:
        drafter.guard.run(lambda: drafter.keep(arguments["logits"]), lambda: None)
    return original()


def _sample(original: Original, arguments: Mapping[str, Any]) -> Any:
    """Keep the step's batch and tokens for :func:`_observe_verification`."""
    runner, batch = arguments["self"], arguments["input_batch"]
    drafter = drafter_of(runner)
    if drafter is not None and batch.num_draft_tokens > 0:
        drafter.check_use()
    sampled = original()
    if drafter is not None:
        setattr(runner.speculator, _SAMPLED, (batch, sampled[0].sampled_token_ids))
    return sampled


def _observe_verification(original: Original, arguments: Mapping[str, Any]) -> Any:
    """Observe the step's target tokens before the draft's next step."""
    speculator, num_sampled = arguments["self"], arguments["num_sampled"]
    drafter = drafter_of(speculator)
    kept = vars(speculator).pop(_SAMPLED, None)
    if drafter is not None and kept is not None:
        batch, sampled = kept
        drafter.guard.run(lambda: _observe(drafter, batch, sampled, num_sampled), lambda: None)
    return original()


def _observe(drafter: Drafter, batch: Any, sampled: Tensor, num_sampled: Tensor) -> None:
    indices = batch.idx_mapping_np[: batch.num_reqs]
    requests = indices.tolist()
    opted_out, verified, rows = drafter.opted_out_of(requests), None, None
    if drafter.head.settings.target_top_k and (opted_out or not drafter.head.shared):
        rows = np.diff(batch.cu_num_logits_np[: batch.num_reqs + 1]).tolist()
        verified = indices.repeat(rows).tolist()
    drafter.observe(
        sampled, requests, num_sampled, verified, opted_out=opted_out, verified_rows=rows
    )
