# SPDX-License-Identifier: Apache-2.0
"""A step's gather in an engine, beside the draft's first layer or in front of it; on a GPU.

A step observes the tokens of B requests, runs the products of the draft's layer over them and calls
the head. Each step copies the rows that a step brings, into the same slots: their ids are cleared
first, which costs each arm the same.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.draft.graph import span
from bench.draft.timeline import timeline
from microspec_kernels.engine import EngineHead

BESIDE, IN_FRONT, NONE = "gather beside the layer", "gather in front", "no gather"
ARMS = (BESIDE, IN_FRONT, NONE)


class GatherStep:
    """Runs one step when called, captured or not.

    Args:
        head: a packed head of full vocabularies.
        observe: observes a step's tokens with `head`.
        layer: runs the draft's layer.
        hidden: [B, D], the input of the head.
        new: the number of rows to copy.
        arm: one of :data:`ARMS`.
    """

    def __init__(
        self,
        head: EngineHead,
        observe: Callable[[], None],
        layer: Callable[[], None],
        hidden: Tensor,
        new: int,
        arm: str,
    ) -> None:
        assert head.head.slab is not None
        self.head, self.slab, self.arm = head, head.head.slab, arm
        self.observe, self.layer, self.hidden = observe, layer, hidden
        self.slots = torch.randperm(head.capacity, device=hidden.device)[:new]
        self._copy = self.slab.refresh_beside_graphs
        self.slab.refresh_beside_graphs = self._gather  # type: ignore[method-assign]

    def __call__(self) -> Tensor:
        if self.arm != NONE:
            self.slab.ids.view(-1).index_fill_(0, self.slots, -1)
        with span("vocabulary"):
            self.observe()
        with span("layer"):
            self.layer()
        with span("head"):
            return self.head.argmax(self.hidden)

    def _gather(self) -> None:
        if self.arm == NONE:
            return
        with span("gather"):
            self._copy()
        if self.arm == IN_FRONT:
            self.slab.wait()


def timelines(steps: dict[str, GatherStep]) -> list[dict[str, Any]]:
    """Return when each part of a step ran, and on which stream, for each arm that gathers."""
    return [
        {"arm": arm, **row} for arm, step in steps.items() if arm != NONE for row in timeline(step)
    ]
