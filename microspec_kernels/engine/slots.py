# SPDX-License-Identifier: Apache-2.0
"""How many slots the vocabularies of an `EngineHead` get."""

from microspec_kernels.policy import CAPACITY, StepCosts, choose_capacity
from microspec_kernels.policy.capacity import SIZES

from .settings import Settings

# K may grow fourfold before the slots end: misses fall by half. A slot takes 12 bytes in indexed
# mode, and an empty one no byte of the LM head.
ROOM = 4


def num_slots(settings: Settings, costs: StepCosts | None, most: int) -> int:
    """Return the number of slots of each vocabulary.

    With capacity "auto" that is the K that the costs are worth, or :data:`~.policy.CAPACITY`
    without costs or if no K beats the dense head. A shared vocabulary that learns in indexed mode
    has room for a larger K; elsewhere each slot takes a row of memory, or is multiplied by the
    requests.

    Args:
        settings: see :class:`Settings`.
        costs: what a step reads.
        most: number of tokens that can be active.
    """
    if settings.capacity != "auto":
        return max(1, min(settings.capacity, most))
    capacity = CAPACITY
    if costs is not None:
        choice = choose_capacity(costs)
        capacity = choice.capacity if choice.speedup > 1 else CAPACITY
        if settings.learn and settings.mode == "indexed" and costs.shared:
            capacity = min(ROOM * capacity, SIZES[-1])
    return max(1, min(capacity, most))
