# SPDX-License-Identifier: Apache-2.0
"""The hook points of the plugin in vLLM, by version."""

from microspec_kernels.integrations.hooks import (
    Attributes,
    CallOrder,
    Definitions,
    Expectation,
    HookPoint,
    UnsupportedError,
)

TESTED: tuple[str, ...] = ("0.30", "0.31", "0.32", "0.33")
"""Supported minor versions."""

_WORKER = "vllm.v1.worker.gpu_worker"
_LAYERS = "vllm.model_executor.layers"
_COMMON: tuple[Expectation, ...] = (
    HookPoint("vllm.v1.worker.worker_base", "WorkerBase.__init__", ("self", "vllm_config")),
    HookPoint("vllm.v1.executor.abstract", "Executor.__init__", ("self", "vllm_config")),
    HookPoint(_WORKER, "Worker.load_model", ("self",)),
    HookPoint(_WORKER, "Worker.compile_or_warm_up_model", ("self",)),
    HookPoint(_WORKER, "Worker.reload_weights", ("self",)),
    HookPoint(_WORKER, "Worker.finish_weight_update", ("self",)),
    HookPoint(
        f"{_LAYERS}.logits_processor",
        "LogitsProcessor.forward",
        ("self", "lm_head", "hidden_states", "embedding_bias"),
    ),
    Attributes(
        f"{_LAYERS}.logits_processor",
        "LogitsProcessor",
        ("org_vocab_size", "scale", "soft_cap", "logits_as_input", "head_dtype"),
    ),
    Attributes(
        f"{_LAYERS}.vocab_parallel_embedding",
        "VocabParallelEmbedding",
        ("quant_method", "num_embeddings", "org_vocab_size", "shard_indices", "tp_size", "tp_rank"),
    ),
    Attributes(f"{_LAYERS}.vocab_parallel_embedding", "UnquantizedEmbeddingMethod", ()),
    Attributes(f"{_LAYERS}.linear", "UnquantizedLinearMethod", ()),
    Attributes(
        "vllm.config.vllm",
        "VllmConfig",
        ("additional_config", "use_v2_model_runner", "speculative_config", "watermark_config"),
    ),
    Attributes(
        "vllm.config.speculative",
        "SpeculativeConfig",
        (
            *("method", "draft_model_config", "draft_sample_method", "num_speculative_tokens"),
            *("use_heterogeneous_vocab", "enable_adaptive_verification"),
        ),
    ),
    Attributes(
        "vllm.config.parallel",
        "ParallelConfig",
        (
            *("enable_batch_sharded_sampling", "pipeline_parallel_size"),
            *("decode_context_parallel_size", "prefill_context_parallel_size"),
            "data_parallel_index",
        ),
    ),
    HookPoint("vllm.config.speculative", "SpeculativeConfig.use_gemma4_mtp", ("self",)),
    Attributes(
        "vllm.v1.engine.async_llm", "AsyncLLM", ("do_log_stats", "collective_rpc", "vllm_config")
    ),
    HookPoint("vllm.distributed.parallel_state", "get_tp_group", ()),
    HookPoint(
        "vllm.distributed.parallel_state", "GroupCoordinator.all_gather", ("self", "input_", "dim")
    ),
    Attributes("vllm.sampling_params", "SamplingParams", ("extra_args",)),
)

_V2 = "vllm.v1.worker.gpu"
_SPECULATOR = f"{_V2}.spec_decode.speculator"
_SAMPLED = ("self", "logits", "input_batch")
_DRAFTS = ("self.sample_draft",)
_RUNNER_V2: tuple[Expectation, ...] = (
    HookPoint(_SPECULATOR, "DraftModelSpeculator.load_model", ("self", "target_model")),
    HookPoint(
        _SPECULATOR,
        "DraftModelSpeculator.sample_draft",
        ("self", "hidden_states", "idx_mapping", "draft_logits"),
    ),
    HookPoint(_SPECULATOR, "DraftModelSpeculator.observe_verification", ("self", "num_sampled")),
    HookPoint(f"{_V2}.model_runner", "GPUModelRunner.load_model", ("self",)),
    HookPoint(f"{_V2}.model_runner", "GPUModelRunner.add_requests", ("self", "scheduler_output")),
    HookPoint(f"{_V2}.model_runner", "GPUModelRunner.sample", ("self", "input_batch")),
    HookPoint(f"{_V2}.sample.sampler", "Sampler.__call__", _SAMPLED),
    HookPoint(f"{_V2}.spec_decode.rejection_sampler", "RejectionSampler.__call__", _SAMPLED),
    Definitions(f"{_V2}.spec_decode", "sample_draft", ("DraftModelSpeculator",)),
    # The vocabulary observes between the two. The grammar's mask must be on the logits by then.
    CallOrder(
        f"{_V2}.model_runner",
        "GPUModelRunner.sample_tokens",
        ("self.sample", "self.speculator.observe_verification", "self.speculator.propose"),
    ),
    CallOrder(
        f"{_V2}.model_runner",
        "GPUModelRunner.sample",
        ("self.structured_outputs_worker.apply_grammar_bitmask", "self.rejection_sampler"),
    ),
    CallOrder(f"{_V2}.spec_decode.dflash.speculator", "DFlashSpeculator._generate_draft", _DRAFTS),
    # DSpark samples by itself, from the logits that the plugin replaces.
    *(
        CallOrder(
            f"{_V2}.spec_decode.dspark.speculator",
            f"DSparkSpeculator.{sampler}",
            ("self.model.compute_draft_logits",),
        )
        for sampler in ("_sample_sequential", "_sample_sequential_topk")
    ),
    Attributes(f"{_V2}.spec_decode.dflash.speculator", "DFlashSpeculator", ("sample_idx_mapping",)),
    CallOrder(
        f"{_V2}.spec_decode.multi_module_mtp.speculator",
        "MultiModuleMTPSpeculator._generate_drafts",
        _DRAFTS,
    ),
    Attributes(
        _SPECULATOR,
        "DraftModelSpeculator",
        ("draft_model_config", "hidden_size", "max_num_reqs", "model"),
    ),
    Attributes(
        f"{_V2}.input_batch",
        "InputBatch",
        ("num_reqs", "num_draft_tokens", "idx_mapping_np", "cu_num_logits_np"),
    ),
    Attributes(
        "vllm.v1.core.sched.output",
        "NewRequestData",
        ("req_id", "prefill_token_ids", "sampling_params"),
    ),
    # The draft's graphs are captured once more with vLLM's own LM head.
    HookPoint(_SPECULATOR, "BaseSpeculator.capture", ("self",)),
    CallOrder(
        f"{_V2}.model_runner",
        "GPUModelRunner.capture_model",
        ("self.cudagraph_manager.capture", "self.speculator.capture"),
    ),
    Attributes(f"{_V2}.cudagraph_utils", "CudaGraphManager", ("graphs", "_capture_descs")),
    CallOrder(
        f"{_V2}.cudagraph_utils", "CudaGraphManager.run_fullgraph", ("self.graphs[desc].replay",)
    ),
    Attributes(f"{_V2}.states", "RequestState", ("req_id_to_index", "all_token_ids")),
)

_PROPOSER = "vllm.v1.spec_decode.llm_base_proposer"
_V1 = "vllm.v1.worker.gpu_model_runner"
_RUNNER_V1: tuple[Expectation, ...] = (
    HookPoint(_PROPOSER, "SpecDecodeBaseProposer.__init__", ("self", "runner")),
    HookPoint(_PROPOSER, "SpecDecodeBaseProposer.load_model", ("self", "target_model")),
    HookPoint(_PROPOSER, "SpecDecodeBaseProposer._greedy_sample", ("self", "hidden_states")),
    HookPoint(
        "vllm.v1.spec_decode.step3p5",
        "Step3p5MTPProposer._sample_draft_tokens_for_step",
        ("self", "hidden_states", "spec_step_idx"),
    ),
    Definitions("vllm.v1.spec_decode", "_sample_draft_tokens_for_step", ("Step3p5MTPProposer",)),
    HookPoint(_V1, "GPUModelRunner._update_states", ("self", "scheduler_output")),
    HookPoint(_V1, "GPUModelRunner._sample", ("self", "logits", "spec_decode_metadata")),
    # Gemma 4's MTP, which the plugin refuses, drafts by its own method.
    Definitions(
        "vllm.v1.spec_decode", "_greedy_sample", ("Gemma4Proposer", "SpecDecodeBaseProposer")
    ),
    Definitions("vllm.v1.spec_decode", "_sample_draft_tokens", ("SpecDecodeBaseProposer",)),
    CallOrder(
        _PROPOSER,
        "SpecDecodeBaseProposer._sample_draft_tokens",
        ("self._greedy_sample",),
    ),
    CallOrder(
        _PROPOSER,
        "SpecDecodeBaseProposer.propose",
        ("self.model", "self._sample_draft_tokens"),
    ),
    CallOrder(
        _V1, "GPUModelRunner.sample_tokens", ("self._sample", "self.propose_draft_token_ids")
    ),
    Attributes(_PROPOSER, "SpecDecodeBaseProposer", ("hidden_size", "vllm_config", "model")),
    Attributes("vllm.v1.spec_decode.metadata", "SpecDecodeMetadata", ("num_draft_tokens",)),
    Attributes(_V1, "GPUModelRunner", ("requests", "input_batch", "discard_request_mask")),
    Attributes(
        "vllm.v1.worker.gpu_input_batch",
        "InputBatch",
        ("req_ids", "num_reqs", "req_id_to_index", "token_ids_cpu"),
    ),
    Attributes(
        "vllm.v1.worker.gpu_input_batch",
        "CachedRequestState",
        ("prompt_token_ids", "num_tokens", "sampling_params"),
    ),
    Attributes("vllm.v1.core.sched.output", "SchedulerOutput", ("finished_req_ids",)),
    Attributes("vllm.v1.core.sched.output", "CachedRequestData", ("resumed_req_ids",)),
)

HOOK_POINTS = _COMMON + _RUNNER_V1 + _RUNNER_V2
"""What the plugin relies on in every supported version."""


def is_tested(version: str) -> bool:
    """Return whether the plugin supports a full version of vLLM."""
    return ".".join(version.split(".")[:2]) in TESTED


def hook_points(version: str) -> tuple[Expectation, ...]:
    """Return what a version of vLLM must have: hook points and facts about their meaning.

    Raises:
        UnsupportedError: the version is unsupported.
    """
    if not is_tested(version):
        raise UnsupportedError("vllm", f"a version among {', '.join(TESTED)}", version)
    return HOOK_POINTS
