"""The head on a GPU, at Llama-3-8B's shape: every arm of head_arms, cold and warm.

cold    slab and ids go round through more than four times the second-level cache, inside the graph
warm    the same slab and ids at every call
Hidden is the same for all calls: in an engine the layer before has just written it.
"""

from typing import Any

import torch

from .cuda_graphs import CopyBandwidth, capture, row, sets_for_cold, time_replays
from .head_arms import arms_for, check, id_sets, make_weight, validate

QUANTISED = (torch.float8_e4m3fn, torch.int8)
CALLS = 36  # in a graph, at least: what its start and end still cost is divided by these
ALLOWED = 1e-4  # of log-probabilities; fp32 sums of 4096 products, as tensor cores add them up


def quantised() -> tuple[torch.dtype, ...]:
    return QUANTISED if torch.cuda.get_device_capability() >= (8, 9) else (torch.int8,)


def measure(
    rows: list[int], rounds: int, only: str = "", quick: bool = False
) -> list[dict[str, Any]]:
    vocab_size, dim, capacity = (32000, 1024, 3072) if quick else (128256, 4096, 3072)
    weight = make_weight(vocab_size, dim, "cuda")
    sets = id_sets(vocab_size, capacity, sets_for_cold(capacity * dim), "cuda")
    calls = -(-CALLS // len(sets)) * len(sets)
    bandwidth = CopyBandwidth()
    table = []
    for m in rows:
        hidden = torch.randn(m, dim, device="cuda").bfloat16()
        shape = {"V": vocab_size, "D": dim, "K": capacity, "M": m, "k": 10}
        for situation, own in (("cold", sets), ("warm", sets[:1])):
            arms = arms_for(weight, own, hidden, quantised())
            arms = {name: arm for name, arm in arms.items() if only in name}
            validate(arms, hidden, ALLOWED)
            replays = {
                name: capture(arm.call, 4 if name.startswith("dense") else calls)
                for name, arm in arms.items()
            }
            times = time_replays({**replays, bandwidth.NAME: bandwidth.replay()}, rounds)
            for name, arm in arms.items():
                # The sets went round: validate, the calls before the capture and those in it end
                # with the first.
                result = replays[name].last
                for tensor in result:
                    tensor.fill_(-7)
                replays[name].run()
                check(f"{name}, replayed", arm, hidden, result, ALLOWED)
            copy = bandwidth.of(times)
            table += [
                row(shape, situation, name, times[name], arm.bytes, copy)
                for name, arm in arms.items()
            ]
    return table
