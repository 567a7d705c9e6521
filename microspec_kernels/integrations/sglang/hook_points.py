# SPDX-License-Identifier: Apache-2.0
"""The hook points of the plugin in SGLang, by version."""

from microspec_kernels.integrations.hooks import HookPoint, UnsupportedError

TESTED: tuple[str, ...] = ("0.5.20", "0.5.21", "0.5.22", "0.5.23")
"""Supported versions."""

_WORKER = "sglang.srt.speculative.eagle_worker_v2"
_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater"
UPDATES = ("disk", "distributed", "tensor", "ipc")
"""Sources of new weights: suffixes of the weight updater's `update_weights_from_` methods."""

_HOOK_POINTS = (
    HookPoint("sglang.srt.managers.scheduler", "Scheduler.__init__", ("self", "server_args")),
    HookPoint(_WORKER, "EagleDraftWorker.init_lm_head", ("self",)),
    HookPoint(_WORKER, "EagleDraftWorker.draft_forward", ("self", "forward_batch")),
    HookPoint(
        _WORKER,
        "EagleDraftWorker._draft_extend_for_prefill",
        ("self", "batch", "next_token_ids"),
    ),
    HookPoint(
        _WORKER, "EagleDraftWorker._draft_extend_for_decode", ("self", "batch", "batch_result")
    ),
    HookPoint(_WORKER, "EAGLEWorkerV2.verify", ("self", "batch")),
    HookPoint(
        "sglang.srt.layers.logits_processor",
        "LogitsProcessor._compute_lm_head",
        ("self", "hidden_states", "lm_head", "embedding_bias"),
    ),
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
            "spec",
            "schedule",
            "lora",
            "exec",
            "parallel",
            "disagg",
            "observability",
            "serving",
        )
    ),
)


def hook_points(version: str) -> tuple[HookPoint, ...]:
    """Return the hook points that a version of SGLang must have.

    Raises:
        UnsupportedError: the version is unsupported.
    """
    if ".".join(version.split(".")[:3]) not in TESTED:
        raise UnsupportedError("sglang", f"a version among {', '.join(TESTED)}", version)
    return _HOOK_POINTS
