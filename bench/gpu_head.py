"""The head on a GPU, by replays of CUDA graphs that hold many calls, in three situations.

cold     slab and ids go round through more than four times the second-level cache, in the graph
warm     the same slab and ids at every call
in situ  the matrix products of the model's draft layer run between the calls, in the graph, with
         other ids each time; the time of a graph with those products alone, replayed in the same
         rounds, is subtracted. This is how an engine sees the head.

Hidden is the same for all calls: in an engine the layer before has just written it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .cuda_graphs import (
    CopyBandwidth,
    Replay,
    capture,
    difference,
    row,
    sets_for_cold,
    time_rounds,
    uncaptured,
)
from .draft_layer import products, weights
from .head_arms import K_BEST, Arm, check, id_sets, make_weight, serving_backend, validate
from .head_peers import arms_for
from .models import DEFAULT, MODELS, Model

SITUATIONS = ("cold", "warm", "in situ")
QUANTISED = (torch.float8_e4m3fn, torch.int8)
CALLS = 36  # in a graph, at least: what its start and end still cost is divided by these
BESIDE_LAYER = 8  # calls in a graph with draft layers between them
LARGE = 2**27  # bytes: no slab is that large; of what reads them, FEW calls in a graph are enough
FEW = 4
ALLOWED = 1e-4  # of log-probabilities; fp32 sums of 4096 products, as tensor cores add them up
LAYER = "draft layer"


def quantised() -> tuple[torch.dtype, ...]:
    if not torch.cuda.is_available():
        return QUANTISED
    return QUANTISED if torch.cuda.get_device_capability() >= (8, 9) else (torch.int8,)


def measure(
    rows: list[int], rounds: int, only: str = "", quick: bool = False
) -> list[dict[str, Any]]:
    """Cold and warm at the default model's shape, K = 3072: for comparing builds of the library."""
    model = MODELS[DEFAULT]
    if quick:
        model = Model("quick", 32000, 1024, 4096, 8, 2, 128)
    shapes = [(3072, m) for m in rows]
    return measure_model(model, shapes, rounds, [only], SITUATIONS[:2])


def measure_model(
    model: Model,
    shapes: Sequence[tuple[int, int]],
    rounds: int,
    only: Sequence[str] = ("",),
    situations: Sequence[str] = SITUATIONS,
    *,
    device: str = "cuda",
    triton: bool = False,
    compile_rows: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Every arm at each (K, M), in each situation; compiled ones where M is in ``compile_rows``."""
    weight = make_weight(model.vocab_size, model.dim, device)
    shared = weights(model, device) if "in situ" in situations else []
    bandwidth = CopyBandwidth(device, 2**30 if device == "cuda" else 2**20)
    table = []
    for capacity, m in shapes:
        hidden = torch.randn(m, model.dim, device=device).bfloat16()
        # Of a slab in 8 bits: as many sets as the smallest of the arms needs.
        count = max(FEW, sets_for_cold(capacity * model.dim))
        sets = id_sets(model.vocab_size, capacity, count, device)
        for situation in situations:
            own = {"cold": sets, "warm": sets[:1], "in situ": sets[:FEW]}[situation]
            arms = arms_for(
                weight,
                own,
                hidden,
                quantised(),
                model.softcap,
                triton=triton,
                compile_too=m in compile_rows,
                only=only,
            )
            validate(arms, hidden, ALLOWED)
            layer = products(model, m, device, shared) if situation == "in situ" else None
            replays = {name: _replay(arm, len(own), layer) for name, arm in arms.items()}
            if layer is not None:
                replays[LAYER] = capture(layer, BESIDE_LAYER)
            seconds = time_rounds({**replays, bandwidth.NAME: bandwidth.replay()}, rounds)
            _check_replays(arms, replays, hidden)
            nothing = [0.0] * rounds
            times = {
                name: difference(taken, seconds[LAYER] if layer and name in arms else nothing)
                for name, taken in seconds.items()
            }
            copy = bandwidth.of(times)
            shape = {
                "model": model.name,
                "V": model.vocab_size,
                "D": model.dim,
                "K": capacity,
                "M": m,
                "k": K_BEST,
            }
            table += [
                row(shape, situation, name, times[name], arm.bytes, copy)
                for name, arm in arms.items()
            ]
    return table


def _replay(arm: Arm, sets: int, layer: Callable[[], None] | None) -> Replay:
    def beside() -> Any:
        assert layer is not None
        layer()
        return arm.call()

    call = arm.call if layer is None else beside
    # So many that the last call of a graph is over the first set again, which can be checked.
    calls = BESIDE_LAYER if layer else -(-CALLS // sets) * sets
    if layer is None and arm.bytes > LARGE:
        calls = FEW
    with serving_backend(arm.backend):
        return uncaptured(call, calls) if arm.eager else capture(call, calls)


def _check_replays(arms: dict[str, Arm], replays: dict[str, Replay], hidden: Tensor) -> None:
    """What a replay leaves, after the timing, where another call's result cannot be left over.

    The sets went round: validate, the calls before the capture and those in it end with the first.
    """
    for name, arm in arms.items():
        if replays[name].captured:
            result = replays[name].last
            for tensor in result:
                tensor.fill_(-7)
            replays[name].run()
            check(f"{name}, replayed", arm, hidden, result, ALLOWED)
