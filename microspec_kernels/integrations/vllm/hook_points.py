# SPDX-License-Identifier: Apache-2.0
"""The hook points of the plugin in vLLM, by version."""

from microspec_kernels.integrations.hooks import HookPoint, UnsupportedError

TESTED: tuple[str, ...] = ("0.30", "0.31", "0.32", "0.33")
"""Supported minor versions."""

_WORKER = "vllm.v1.worker.gpu_worker"
_COMMON = (
    HookPoint("vllm.v1.worker.worker_base", "WorkerBase.__init__", ("self", "vllm_config")),
    HookPoint("vllm.v1.executor.abstract", "Executor.__init__", ("self", "vllm_config")),
    HookPoint(_WORKER, "Worker.load_model", ("self",)),
    HookPoint(_WORKER, "Worker.compile_or_warm_up_model", ("self",)),
    HookPoint(_WORKER, "Worker.reload_weights", ("self",)),
    HookPoint(_WORKER, "Worker.finish_weight_update", ("self",)),
    HookPoint(
        "vllm.model_executor.layers.logits_processor",
        "LogitsProcessor.forward",
        ("self", "lm_head", "hidden_states", "embedding_bias"),
    ),
    HookPoint("vllm.config.speculative", "SpeculativeConfig.use_gemma4_mtp", ("self",)),
    HookPoint("vllm.config.speculative", "SpeculativeConfig.use_multi_module_mtp", ("self",)),
    HookPoint("vllm.distributed.parallel_state", "get_tp_group", ()),
)

_V2 = "vllm.v1.worker.gpu"
_SPECULATOR = f"{_V2}.spec_decode.speculator"
_SAMPLED = ("self", "logits", "input_batch")
_RUNNER_V2 = (
    HookPoint(_SPECULATOR, "DraftModelSpeculator.load_model", ("self", "target_model")),
    HookPoint(
        _SPECULATOR,
        "DraftModelSpeculator.sample_draft",
        ("self", "hidden_states", "idx_mapping"),
    ),
    HookPoint(_SPECULATOR, "DraftModelSpeculator.observe_verification", ("self", "num_sampled")),
    HookPoint(f"{_V2}.model_runner", "GPUModelRunner.load_model", ("self",)),
    HookPoint(f"{_V2}.model_runner", "GPUModelRunner.add_requests", ("self", "scheduler_output")),
    HookPoint(f"{_V2}.model_runner", "GPUModelRunner.sample", ("self", "input_batch")),
    HookPoint(f"{_V2}.sample.sampler", "Sampler.__call__", _SAMPLED),
    HookPoint(f"{_V2}.spec_decode.rejection_sampler", "RejectionSampler.__call__", _SAMPLED),
)

_PROPOSER = "vllm.v1.spec_decode.llm_base_proposer"
_V1 = "vllm.v1.worker.gpu_model_runner"
_RUNNER_V1 = (
    HookPoint(_PROPOSER, "SpecDecodeBaseProposer.__init__", ("self", "runner")),
    HookPoint(_PROPOSER, "SpecDecodeBaseProposer.load_model", ("self",)),
    HookPoint(_PROPOSER, "SpecDecodeBaseProposer._greedy_sample", ("self", "hidden_states")),
    HookPoint(_V1, "GPUModelRunner._update_states", ("self", "scheduler_output")),
    HookPoint(_V1, "GPUModelRunner._sample", ("self", "logits", "spec_decode_metadata")),
)


def hook_points(version: str) -> tuple[HookPoint, ...]:
    """Return the hook points that a version of vLLM must have.

    Raises:
        UnsupportedError: the version is unsupported.
    """
    minor = ".".join(version.split(".")[:2])
    if minor not in TESTED:
        raise UnsupportedError("vllm", f"a version among {', '.join(TESTED)}", version)
    return _COMMON + _RUNNER_V1 + _RUNNER_V2
