# SPDX-License-Identifier: Apache-2.0
"""Capture SGLang's draft graphs with both heads, and choose among them at replay.

A graph runner of the draft captures each shape through its backend, under a key. Here each shape is
captured twice, over the same static buffers and attention metadata: with the active vocabulary, and
with SGLang's own LM head under a key of another variant. SGLang captures variants of one shape in
the same way, for greedy and drawn drafts.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from microspec_kernels.integrations.hooks import HeadChoice

DENSE = "microspec dense"
_BOTH = "microspec_captures_both"
RUNNERS = ("cuda_graph_runner", "cuda_graph_runner_for_draft_extend")
"""Attributes of an EagleDraftWorker: the runners whose graphs have the draft's LM head in them."""


def capture_both(runner: Any, choice: HeadChoice) -> None:
    """Let a graph runner capture and replay both heads. Call before it captures.

    Does nothing if its backend does so already, as when SGLang captures again.

    Args:
        runner: a graph runner with its backend.
        choice: chooses the graph of each replay.
    """
    backend = runner.backend
    if hasattr(backend, _BOTH):
        return
    capture_one, replay = backend.capture_one, backend.replay

    def capture_twice(shape_key: Any, forward: Callable[[], Any], *args: Any, **more: Any) -> None:
        with choice.fixed(False):
            capture_one(shape_key, forward, *args, **more)
        with choice.fixed(True):
            capture_one(_dense(shape_key), forward, *args, **more)

    def replay_one(shape_key: Any, *args: Any, **more: Any) -> Any:
        return replay(_dense(shape_key) if choice.dense else shape_key, *args, **more)

    backend.capture_one, backend.replay = capture_twice, replay_one
    setattr(backend, _BOTH, True)


def captures_one(worker: Any) -> list[str]:
    """Return the graph runners of a draft worker that have captured one head only."""
    runners = {name: getattr(worker, name, None) for name in RUNNERS}
    return [
        name
        for name, runner in runners.items()
        if runner is not None and not hasattr(getattr(runner, "backend", None), _BOTH)
    ]


def _dense(shape_key: Any) -> Any:
    label = shape_key.variant_label
    return replace(shape_key, variant_label=DENSE if label is None else f"{label}, {DENSE}")
