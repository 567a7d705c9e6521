"""The places of SGLang that the plugin stands on, by version."""

from microspec_kernels.integrations.hooks import HookPoint, UnsupportedError

TESTED: tuple[str, ...] = ("0.5.20", "0.5.21", "0.5.22", "0.5.23")
"""Versions that are served."""

_WORKER = "sglang.srt.speculative.eagle_worker_v2"
_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater"
UPDATES = ("disk", "distributed", "tensor", "ipc")
"""Where new weights may come from."""

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
        for group in ("spec", "schedule", "lora", "exec", "parallel", "disagg", "observability")
    ),
)


def hook_points(version: str) -> tuple[HookPoint, ...]:
    """What has to be there in SGLang's version.

    Raises:
        UnsupportedError: a version that is not served.
    """
    if ".".join(version.split(".")[:3]) not in TESTED:
        raise UnsupportedError("sglang", f"a version among {', '.join(TESTED)}", version)
    return _HOOK_POINTS
