# SPDX-License-Identifier: Apache-2.0
"""How many slots the vocabularies of an `EngineHead` get."""

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


def slab_share(settings: Settings, weight: Tensor) -> float | None:
    """Return the bytes of a slab's row as a share of the weight's; None if both are the same."""
    if settings.slab_torch_dtype is None:
        return None
    bits = 4.5 if settings.slab_dtype == "int4" else 8.0  # int4 with its scales
    return bits / 8 / weight.element_size()
