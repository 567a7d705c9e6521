# SPDX-License-Identifier: Apache-2.0
"""How many slots the vocabularies of an `EngineHead` get."""

from dataclasses import replace

from torch import Tensor

from microspec_kernels.policy import CAPACITY, StepCosts, choose_capacity
from microspec_kernels.policy.capacity import SIZES

from .settings import Settings

# K may grow fourfold before the slots end: misses fall by half. A slot takes 12 bytes in indexed
# mode, and an empty one no byte of the LM head.
ROOM = 4


def may_change(settings: Settings, costs: StepCosts | None, sharded: bool) -> bool:
    """Return whether K is chosen again while texts are written.

    In packed mode each slot takes a row of memory, and vocabularies of each request multiply it.
    Ranks would choose at different times, as each waits for its own copy of the counters.
    """
    auto = settings.capacity == "auto" and settings.learn and settings.mode == "indexed"
    return auto and costs is not None and costs.shared and not sharded


def num_slots(
    settings: Settings, costs: StepCosts | None, most: int, *, sharded: bool = False
) -> int:
    """Return the number of slots of each vocabulary.

    With capacity "auto" that is the K that the costs are worth, or :data:`~.policy.CAPACITY`
    without costs or if no K beats the dense head. K may change only where :func:`may_change` says
    so, and there is room for a larger one then.

    Args:
        settings: see :class:`Settings`.
        costs: what a step reads.
        most: number of tokens that can be active.
        sharded: whether ranks share the head.
    """
    if settings.capacity != "auto":
        return max(1, min(settings.capacity, most))
    capacity = CAPACITY
    if costs is not None:
        choice = choose_capacity(costs)
        capacity = choice.capacity if choice.speedup > 1 else CAPACITY
        if may_change(settings, costs, sharded):
            capacity = min(ROOM * capacity, SIZES[-1])
    return max(1, min(capacity, most))


def costs_of_head(
    costs: StepCosts, settings: Settings, weight: Tensor, *, shared: bool
) -> StepCosts:
    """Return a step's costs with the vocabularies and the slab of the settings.

    Args:
        costs: what a step reads.
        settings: see :class:`Settings`.
        weight: the draft's LM head.
        shared: whether there is one vocabulary.
    """
    slab_row_bytes = None
    if settings.slab_torch_dtype is not None:
        bits = 4.5 if settings.slab_dtype == "int4" else 8.0  # int4 with its scales
        slab_row_bytes = costs.row_bytes * bits / 8 / weight.element_size()
    return replace(costs, shared=shared, slab_row_bytes=slab_row_bytes)
