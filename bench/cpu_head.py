"""The head on a CPU, in two situations, with other active ids at every call, from all over.

in situ     the products of the model's draft layer run before each call, as they do in an engine:
            the rows, and the code of the call itself, come from memory
repeated    the same arm ran three times just before: what the kernel does once it is called

Reading bandwidth is measured in the same rounds.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from microspec_kernels.timing import time_arms

from .draft_layer import products
from .head_arms import K_BEST, id_sets, make_weight, validate
from .head_peers import arms_for
from .models import Model

SITUATIONS = ("in situ", "repeated")
ONLY_GPU = (", eager", ", fp32 product")
SETS = 32  # of active ids, in turn: 32 × 25 MB for Llama-3.1-8B's shape


def bandwidth_arm(weight: Tensor) -> tuple[Callable[[], Tensor], int]:
    """Sums a quarter of the weight, another one each time; and how many bytes that reads."""
    quarters = weight.view(torch.float32).chunk(4)
    turn = itertools.cycle(quarters)
    return lambda: next(turn).sum(), quarters[0].numel() * 4


def measure(
    model: Model,
    shapes: Sequence[tuple[int, int]],
    rounds: int,
    only: Sequence[str] = ("",),
    situations: Sequence[str] = SITUATIONS,
) -> list[dict[str, Any]]:
    """Every arm at each (K, M), with the share of the bandwidth it reaches."""
    weight = make_weight(model.vocab_size, model.dim)
    table = []
    for capacity, rows in shapes:
        hidden = torch.randn(rows, model.dim).to(weight.dtype)
        sets = id_sets(model.vocab_size, capacity, SETS)
        arms = arms_for(weight, sets, hidden, (torch.int8,), model.softcap, only=only)
        # All are called from Python here, and a product has one form.
        arms = {name: arm for name, arm in arms.items() if not name.endswith(ONLY_GPU)}
        validate(arms, hidden)
        read, read_bytes = bandwidth_arm(weight)
        timed: dict[str, Callable[[], Any]] = {name: arm.call for name, arm in arms.items()}
        timed["read"] = read
        layer = products(model, rows)
        before = {
            "in situ": lambda name, layer=layer: layer(),
            "repeated": lambda name, timed=timed: [timed[name]() for _ in range(3)],
        }
        for situation in situations:
            times = time_arms(timed, rounds, before=before[situation])
            peak = read_bytes / times["read"].p50
            table += [
                {
                    "model": model.name,
                    "V": model.vocab_size,
                    "D": model.dim,
                    "K": capacity,
                    "M": rows,
                    "k": K_BEST,
                    "situation": situation,
                    "arm": name,
                    **times[name].in_us(),
                    "bytes": arm.bytes,
                    "floor_us": arm.bytes / peak * 1e6,
                    "over_floor": times[name].p50 * peak / arm.bytes,
                    "read_GBps": peak / 1e9,
                }
                for name, arm in arms.items()
            ]
    return table
