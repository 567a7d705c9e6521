# SPDX-License-Identifier: Apache-2.0
"""Hooks for model runner V1 (vllm/v1/worker/gpu_model_runner.py).

Its draft's LM head always runs eagerly. The row of a request changes from step to step, so all
requests share one vocabulary. The runner calls `GPUModelRunner._sample` in real steps only, after
the target and before the draft; the vocabulary observes tokens there.
"""

from collections.abc import Mapping
from typing import Any

import torch

from microspec_kernels.integrations.hooks import UnsupportedError
from microspec_kernels.integrations.hooks.wrap import Original, wrap

from .attach import attach
from .draft_lm_head import ComputeLogits
from .drafter import drafter_of, hold
from .switch import settings_of


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
    config = proposer.vllm_config
    settings = settings_of(config)
    if settings is None:
        return
    if settings.vocabulary != "shared":
        where = "vllm: vocabulary"
        raise UnsupportedError(where, "'shared' with model runner V1", repr(settings.vocabulary))
    compute_logits = None
    if hasattr(proposer, "_sample_draft_tokens_for_step"):  # one module for each step
        compute_logits = _logits_of_step(proposer.model)
    drafter = attach(
        type(proposer).__name__,
        proposer.model,
        config,
        settings,
        max_requests=1,
        hidden_size=proposer.hidden_size,
        compute_logits=compute_logits,
    )
    for holder in (proposer, proposer.microspec_runner):
        hold(holder, drafter)


def _greedy_sample(original: Original, arguments: Mapping[str, Any]) -> Any:
    drafter, hidden = drafter_of(arguments["self"]), arguments["hidden_states"]
    return original() if drafter is None else drafter.draft(hidden)


def _logits_of_step(model: Any) -> ComputeLogits:
    return lambda hidden, step: model.compute_logits(hidden, spec_step_idx=step)


def _sample_step(original: Original, arguments: Mapping[str, Any]) -> Any:
    drafter = drafter_of(arguments["self"])
    if drafter is None:
        return original()
    return drafter.draft(arguments["hidden_states"], step=arguments["spec_step_idx"]), None


def _update_states(original: Original, arguments: Mapping[str, Any]) -> Any:
    """Begin the requests that join or come back after preemption."""
    updated = original()
    runner, scheduled = arguments["self"], arguments["scheduler_output"]
    drafter = drafter_of(runner)
    if drafter is not None:
        joined = [request.req_id for request in scheduled.scheduled_new_reqs]
        joined += scheduled.scheduled_cached_reqs.resumed_req_ids
        if joined:
            prefixes = [_cached(runner.requests[request_id]) for request_id in joined]
            drafter.begin([0] * len(joined), prefixes)
    return updated


def _cached(request: Any) -> list[int]:
    """Return the tokens whose keys and values are cached before the request's first step."""
    prompt = request.prompt_token_ids or []  # None if the prompt is given as embeddings
    tokens: list[int] = [*prompt, *request.output_token_ids][: request.num_computed_tokens]
    return tokens


def _sample(original: Original, arguments: Mapping[str, Any]) -> Any:
    """Observe the step's target tokens before the draft's next step."""
    runner, logits, verified = (
        arguments["self"],
        arguments["logits"],
        arguments["spec_decode_metadata"],
    )
    drafter = drafter_of(runner)
    if drafter is None:
        return original()
    if verified is not None and any(verified.num_draft_tokens):
        drafter.check_use()
    drafter.keep(logits)
    output = original()
    requests = runner.input_batch.num_reqs
    text = runner.input_ids.gpu[: int(runner.query_start_loc.np[requests])]
    sampled = output.sampled_token_ids  # -1 after the accepted tokens
    if verified is None:
        drafted = torch.zeros(requests, dtype=torch.bool, device=sampled.device)
    else:
        drafts = verified.cu_num_draft_tokens
        drafted = drafts.diff(prepend=drafts.new_zeros(1)) > 0
    drafter.observe(text, sampled, drafted)
    return output
