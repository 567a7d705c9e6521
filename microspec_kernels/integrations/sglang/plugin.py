# SPDX-License-Identifier: Apache-2.0
"""Read the MICROSPEC switch and, if it is set, patch SGLang's EAGLE worker."""

import functools
import importlib.metadata
import os
from collections.abc import Mapping
from typing import Any

from microspec_kernels.engine import SWITCH, Settings
from microspec_kernels.integrations.hooks import UnsupportedError, check_hook_points
from microspec_kernels.integrations.hooks.wrap import Original, wrap

from .dense_graphs import capture_both, captures_one
from .draft import ActiveDraft, attach
from .hook_points import TESTED, UPDATES, hook_points
from .requirements import check_config, check_settings, is_multi_layer

_ATTRIBUTE = "microspec_draft"


def install() -> None:
    """Hook the scheduler's constructor. Does nothing unless MICROSPEC is set.

    Raises:
        UnsupportedError: MICROSPEC cannot be read, or it is on and its settings or this SGLang are
            unsupported.
    """
    try:
        settings = Settings.parse(os.environ.get(SWITCH))
    except (ValueError, TypeError) as error:
        raise UnsupportedError(SWITCH, "settings", error) from error
    if settings is None:
        return
    check_settings(settings)
    version = importlib.metadata.version("sglang")
    check_hook_points("sglang", version, ", ".join(TESTED), hook_points(version))
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    # The rest happens in the scheduler's process: other processes have no draft worker.
    target = f"{Scheduler.__module__}.{Scheduler.__qualname__}.__init__"
    HookRegistry.register(target, functools.partial(_make_scheduler, settings), HookType.AROUND)


def _make_scheduler(settings: Settings, original: Any, *args: Any, **kwargs: Any) -> None:
    check_config()
    _patch(settings, is_multi_layer())
    original(*args, **kwargs)
    worker = args[0].draft_worker
    if not hasattr(worker.draft_worker, _ATTRIBUTE):
        raise UnsupportedError(
            "sglang: Scheduler.draft_worker", "a draft attached", type(worker).__name__
        )
    draft = draft_of(worker.draft_worker)
    if draft is not None:
        once = captures_one(worker.draft_worker)
        if once:
            draft.choice.forbid(f"{' and '.join(once)} captured without it")
        draft.guard.start()


def _patch(settings: Settings, multi_layer: bool = False) -> None:
    """Wrap SGLang's methods directly: its registry would only log a missing method.

    Args:
        settings: the user's settings.
        multi_layer: whether a draft has a model for each step (--enable-multi-layer-eagle).
    """
    from sglang.srt.managers.scheduler_components.weight_updater import (
        SchedulerWeightUpdaterManager,
    )
    from sglang.srt.speculative.eagle_draft_cuda_graph_runner import EAGLEDraftCudaGraphRunner
    from sglang.srt.speculative.eagle_draft_extend_cuda_graph_runner import (
        EAGLEDraftExtendCudaGraphRunner,
    )
    from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker, EAGLEWorkerV2

    for runner in (EAGLEDraftCudaGraphRunner, EAGLEDraftExtendCudaGraphRunner):
        wrap(runner, "capture", _capture)
    workers: list[tuple[Any, Any]] = [(EagleDraftWorker, EAGLEWorkerV2)]
    if multi_layer:
        from sglang.srt.speculative.multi_layer_eagle_worker_v2 import (
            MultiLayerEagleDraftWorker,
            MultiLayerEagleWorkerV2,
        )

        workers.append((MultiLayerEagleDraftWorker, MultiLayerEagleWorkerV2))
    for drafts, verifies in workers:
        wrap(drafts, "init_lm_head", functools.partial(_attach, settings))
        wrap(drafts, "_draft_extend_for_prefill", _extend_for_prefill)
        wrap(drafts, "draft", _draft)
        wrap(verifies, "verify", _verify)
    for source in UPDATES:
        wrap(SchedulerWeightUpdaterManager, f"update_weights_from_{source}", _update_weights)


def draft_of(worker: Any) -> ActiveDraft | None:
    """Return what is attached to a draft worker; None if nothing can be won there.

    Raises:
        UnsupportedError: the worker got its LM head without the plugin's hook.
    """
    if not hasattr(worker, _ATTRIBUTE):
        raise UnsupportedError("sglang: EAGLEWorkerV2", "a draft attached", type(worker).__name__)
    draft: ActiveDraft | None = getattr(worker, _ATTRIBUTE)
    return draft


def _attach(settings: Settings, original: Original, arguments: Mapping[str, Any]) -> None:
    original()
    setattr(arguments["self"], _ATTRIBUTE, attach(arguments["self"], settings))


def _extend_for_prefill(original: Original, arguments: Mapping[str, Any]) -> Any:
    draft, batch = draft_of(arguments["self"]), arguments["batch"]
    if draft is not None and not batch.forward_mode.is_idle():
        next_token_ids = arguments["next_token_ids"]
        draft.guard.run(lambda: draft.prompts(batch, next_token_ids), lambda: None)
    return original()


def _capture(original: Original, arguments: Mapping[str, Any]) -> None:
    """Capture both heads, if this is a runner of an attached draft and steps may use either."""
    runner = arguments["self"]
    draft: ActiveDraft | None = getattr(runner.eagle_worker, _ATTRIBUTE, None)
    if draft is not None and draft.choice.allowed:
        capture_both(runner, draft.choice)
    original()


def _draft(original: Original, arguments: Mapping[str, Any]) -> Any:
    draft, batch = draft_of(arguments["self"]), arguments["batch"]
    if draft is not None and not batch.forward_mode.is_idle():
        draft.guard.run(lambda: draft.drafts_for(batch), lambda: None)
    return original()


def _verify(original: Original, arguments: Mapping[str, Any]) -> Any:
    draft, batch = draft_of(arguments["self"].draft_worker), arguments["batch"]
    result = original()
    if draft is not None and not batch.forward_mode.is_idle():
        draft.check_use()
        draft.guard.run(lambda: draft.verified(batch, result), lambda: None)
    return result


def _update_weights(original: Original, arguments: Mapping[str, Any]) -> Any:
    updated = original()
    draft = draft_of(arguments["self"].draft_worker.draft_worker)
    if draft is not None:
        draft.guard.run(draft.reload, lambda: None)
    return updated
