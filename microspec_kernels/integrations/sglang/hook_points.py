# SPDX-License-Identifier: Apache-2.0
"""The hook points of the plugin in SGLang, by version."""

from microspec_kernels.integrations.hooks import (
    Attributes,
    CallOrder,
    Definitions,
    Expectation,
    HookPoint,
    UnsupportedError,
)

TESTED: tuple[str, ...] = ("0.5.20", "0.5.21", "0.5.22", "0.5.23")
"""Supported versions."""

_WORKER = "sglang.srt.speculative.eagle_worker_v2"
_GRAPHS = "sglang.srt.speculative.eagle_draft"
_BACKEND = "sglang.srt.model_executor.runner_backend.base_cuda_graph_backend"
_MULTI_LAYER = "sglang.srt.speculative.multi_layer_eagle_worker_v2"
_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater"
UPDATES = ("disk", "distributed", "tensor", "ipc")
"""Sources of new weights: suffixes of the weight updater's `update_weights_from_` methods."""

HOOK_POINTS: tuple[Expectation, ...] = (
    HookPoint("sglang.srt.managers.scheduler", "Scheduler.__init__", ("self", "server_args")),
    HookPoint(_WORKER, "EagleDraftWorker.init_lm_head", ("self",)),
    HookPoint(
        _WORKER,
        "EagleDraftWorker._draft_extend_for_prefill",
        ("self", "batch", "next_token_ids"),
    ),
    HookPoint(_WORKER, "EagleDraftWorker.draft", ("self", "batch")),
    HookPoint(_WORKER, "EAGLEWorkerV2.verify", ("self", "batch")),
    HookPoint(
        "sglang.srt.layers.logits_processor",
        "LogitsProcessor._compute_lm_head",
        ("self", "hidden_states", "lm_head", "embedding_bias"),
        positional=True,  # the plugin replaces it by a method of its own
    ),
    CallOrder(
        "sglang.srt.layers.logits_processor",
        "LogitsProcessor._get_logits",
        ("self._gather_dp_attn_hidden_states", "self._compute_lm_head"),
    ),
    Definitions("sglang.srt.layers", "_compute_lm_head", ("LogitsProcessor",)),
    # The target verifies what the attached LM head drafted.
    CallOrder(
        _WORKER,
        "EAGLEWorkerV2.forward_batch_generation",
        ("self.draft_worker.draft", "self.verify"),
    ),
    # Drafts with a model for each step (--enable-multi-layer-eagle).
    HookPoint(_MULTI_LAYER, "MultiLayerEagleDraftWorker.init_lm_head", ("self",)),
    HookPoint(
        _MULTI_LAYER,
        "MultiLayerEagleDraftWorker._draft_extend_for_prefill",
        ("self", "batch", "next_token_ids"),
    ),
    HookPoint(_MULTI_LAYER, "MultiLayerEagleDraftWorker.draft", ("self", "batch")),
    HookPoint(_MULTI_LAYER, "MultiLayerEagleWorkerV2.verify", ("self", "batch")),
    CallOrder(
        _MULTI_LAYER,
        "MultiLayerEagleWorkerV2.forward_batch_generation",
        ("self.draft_worker.draft", "self.verify", "self.draft_worker._draft_extend_for_decode"),
    ),
    Attributes(
        _MULTI_LAYER,
        "MultiLayerEagleDraftWorker",
        ("draft_runner", "draft_runner_list", "target_worker", "speculative_num_steps"),
    ),
    Attributes(
        "sglang.srt.layers.vocab_parallel_embedding",
        "VocabParallelEmbedding",
        (
            *("quant_method", "num_embeddings", "org_vocab_size", "embedding_dim"),
            *("shard_indices", "tp_size"),
        ),
    ),
    Attributes(
        _WORKER,
        "EagleDraftWorker",
        ("draft_runner", "target_worker", "hot_token_id"),
    ),
    Attributes("sglang.srt.managers.schedule_batch", "Req", ("rid", "sampling_params")),
    Attributes("sglang.srt.sampling.sampling_params", "SamplingParams", ("custom_params",)),
    # The draft's graphs are captured once more, with SGLang's own LM head.
    HookPoint(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
        "DecodeCudaGraphRunner.capture",
        ("self",),
    ),
    *(
        CallOrder(
            f"{_GRAPHS}{of}_cuda_graph_runner", f"EAGLEDraft{name}CudaGraphRunner.{method}", calls
        )
        for of, name in (("", ""), ("_extend", "Extend"))
        for method, calls in (
            ("__init__", ("resolve_decode_backend", "self.capture")),
            ("capture_one_shape", ("self.backend.capture_one",)),
            ("_replay_graph", ("self.backend.replay",)),
        )
    ),
    *(
        HookPoint(
            _BACKEND, f"BaseCudaGraphBackend.{method}", ("self", "shape_key"), positional=True
        )
        for method in ("capture_one", "replay")
    ),
    Attributes("sglang.srt.model_executor.runner.shape_key", "ShapeKey", ("size", "variant_label")),
    HookPoint("sglang.srt.plugins.hook_registry", "HookRegistry.register", ("target", "hook")),
    *(
        HookPoint(
            _UPDATER, f"SchedulerWeightUpdaterManager.update_weights_from_{source}", ("self",)
        )
        for source in UPDATES
    ),
    *(
        HookPoint("sglang.srt.runtime_context", f"get_{group}", ())
        for group in (
            *("spec", "schedule", "lora", "exec", "parallel", "disagg", "observability"),
            "serving",
        )
    ),
)


def is_tested(version: str) -> bool:
    """Return whether the plugin supports a full version of SGLang."""
    return ".".join(version.split(".")[:3]) in TESTED


def hook_points(version: str) -> tuple[Expectation, ...]:
    """Return what a version of SGLang must have: hook points and facts about their meaning.

    Raises:
        UnsupportedError: the version is unsupported.
    """
    if not is_tested(version):
        raise UnsupportedError("sglang", f"a version among {', '.join(TESTED)}", version)
    return HOOK_POINTS
