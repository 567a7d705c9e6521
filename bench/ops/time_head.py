# SPDX-License-Identifier: Apache-2.0
"""Time every way to do the head's job at a model's sizes: by calls, or by graphs on a GPU.

Both take the same inputs, arms and checks. They differ in the situations that they measure.

By calls from Python, on a CPU, with other active ids at every call, from all over the vocabulary:

in situ     the products of the model's draft layer run before each call, as in an engine: the rows
            and the code of the call itself come from memory
repeated    the same arm ran three times just before: the kernel alone

By replays of CUDA graphs that hold many calls:

cold        slab and ids rotate through more than four times the L2 cache, in the graph
warm        the same slab and ids at every call
in situ     the products of the model's draft layer run between the calls, in the graph, with other
            ids each time. We subtract the time of a graph with those products alone, replayed in
            the same rounds. This is how an engine sees the head.

Hidden is the same for all calls: in an engine the layer before has just written it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.harness.bandwidth import CopyBandwidth, ReadBandwidth, row
from bench.harness.cuda_graphs import (
    Replay,
    capture,
    difference,
    sets_for_cold,
    time_rounds,
    uncaptured,
)
from bench.harness.draft_layer import products, weights
from bench.harness.head_check import HeadArm, check, serving_backend, validate
from bench.harness.inputs import id_sets, make_weight
from bench.harness.models import Model
from bench.harness.sizes import K_BEST
from bench.harness.supported import quantised
from microspec_kernels._checks import E2M1, INT4
from microspec_kernels.timing import Percentiles, time_arms

from .head_arms import arms_for

CALLS = 36  # in a graph, at least: they share what the start and the end of a replay cost
BESIDE_LAYER = 8  # calls in a graph with draft layers between them
LARGE = 2**27  # bytes, more than any slab. A graph needs only FEW calls that read so many
FEW = 4
SETS = 32  # of active ids on a CPU: 32 × 25 MB for Llama-3.1-8B
LAYER = "draft layer"

Times = dict[str, Percentiles]


class CallTiming:
    """Times calls from Python on a CPU."""

    situations = ("in situ", "repeated")
    allowed = 1e-5
    left_out = (", eager", ", fp32 product")  # here all are called, and a product has one form

    def __init__(self, weight: Tensor, device: str) -> None:
        self.bandwidth = ReadBandwidth(weight)

    def quantised(self) -> Sequence[torch.dtype]:
        return (torch.int8, INT4, E2M1)

    def count_sets(self, bytes_of_a_call: int) -> int:
        return SETS

    def sets_for(self, situation: str, sets: list[Tensor]) -> list[Tensor]:
        return sets

    def time(
        self,
        situation: str,
        arms: dict[str, HeadArm],
        sets: int,
        hidden: Tensor,
        layer: Callable[[], None],
        rounds: int,
    ) -> Times:
        calls: dict[str, Callable[[], Any]] = {name: arm.call for name, arm in arms.items()}
        calls[self.bandwidth.NAME] = self.bandwidth
        before: dict[str, Callable[[str], object]] = {
            "in situ": lambda name: layer(),
            "repeated": lambda name: [calls[name]() for _ in range(3)],
        }
        return time_arms(calls, rounds, before=before[situation])


class GraphTiming:
    """Times replays of CUDA graphs. Without a GPU it runs the same logic over plain calls."""

    situations = ("cold", "warm", "in situ")
    allowed = 1e-4  # of log-probabilities: tensor cores sum 4096 products in fp32
    left_out = ()

    def __init__(self, weight: Tensor, device: str) -> None:
        self.bandwidth = CopyBandwidth(device)

    def quantised(self) -> Sequence[torch.dtype]:
        return (*quantised(), INT4, E2M1)

    def count_sets(self, bytes_of_a_call: int) -> int:
        return max(FEW, sets_for_cold(bytes_of_a_call))

    def sets_for(self, situation: str, sets: list[Tensor]) -> list[Tensor]:
        return {"cold": sets, "warm": sets[:1], "in situ": sets[:FEW]}[situation]

    def time(
        self,
        situation: str,
        arms: dict[str, HeadArm],
        sets: int,
        hidden: Tensor,
        layer: Callable[[], None],
        rounds: int,
    ) -> Times:
        between = layer if situation == "in situ" else None
        replays = {name: replay_of(arm, sets, between) for name, arm in arms.items()}
        beside = {self.bandwidth.NAME: self.bandwidth.replay()}
        if between is not None:
            beside[LAYER] = capture(between, BESIDE_LAYER)
        seconds = time_rounds({**replays, **beside}, rounds)
        check_replays(arms, replays, hidden, self.allowed)
        nothing = [0.0] * rounds
        return {
            name: difference(taken, seconds[LAYER] if between and name in arms else nothing)
            for name, taken in seconds.items()
        }


def measure(
    model: Model,
    shapes: Sequence[tuple[int, int]],
    rounds: int,
    timing: type[CallTiming] | type[GraphTiming],
    only: Sequence[str] = ("",),
    situations: Sequence[str] = (),
    *,
    device: str | None = None,
    triton: bool = False,
    compile_rows: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Validate and time every arm at each (K, M), and compare it with the bandwidth.

    Args:
        only: texts of which an arm's name has one.
        situations: of the timing; by default all.
        device: by default the timing's own.
        triton: whether to add arms of the Triton kernels.
        compile_rows: M with compiled arms.

    Raises:
        ValueError: a situation that the timing does not have.
    """
    device = device or ("cuda" if timing is GraphTiming else "cpu")
    situations = situations or timing.situations
    if unknown := set(situations) - set(timing.situations):
        expected = ", ".join(timing.situations)
        raise ValueError(f"--situations: expected some of {expected}, got {', '.join(unknown)}")
    weight = make_weight(model.vocab_size, model.dim, device)
    layer_weights = weights(model, device) if "in situ" in situations else []
    timer = timing(weight, device)
    table = []
    for capacity, m in shapes:
        hidden = torch.randn(m, model.dim, device=device).bfloat16()
        # A slab in 8 bits is the smallest, so it needs the most sets.
        every_set = id_sets(
            model.vocab_size, capacity, timer.count_sets(capacity * model.dim), device
        )
        layer = products(model, m, device, layer_weights) if layer_weights else _no_layer
        shape = {
            "model": model.name,
            "V": model.vocab_size,
            "D": model.dim,
            "K": capacity,
            "M": m,
            "k": K_BEST,
        }
        arms_by_count: dict[int, dict[str, HeadArm]] = {}
        for situation in situations:
            sets = timer.sets_for(situation, every_set)
            if len(sets) not in arms_by_count:
                arms = arms_for(
                    weight,
                    sets,
                    hidden,
                    timer.quantised(),
                    model.softcap,
                    triton=triton,
                    compile_too=m in compile_rows,
                    only=only,
                )
                arms = {
                    name: arm for name, arm in arms.items() if not name.endswith(timer.left_out)
                }
                validate(arms, hidden, timer.allowed)
                arms_by_count[len(sets)] = arms
            arms = arms_by_count[len(sets)]
            times = timer.time(situation, arms, len(sets), hidden, layer, rounds)
            table += [
                row(shape, situation, name, times, arm.bytes, timer.bandwidth)
                for name, arm in arms.items()
            ]
    return table


def _no_layer() -> None:
    raise AssertionError("no situation has a layer")


def replay_of(arm: HeadArm, sets: int, layer: Callable[[], None] | None) -> Replay:
    """Capture calls of the arm, each behind the layer if there is one."""

    def behind_layer() -> Any:
        assert layer is not None
        layer()
        return arm.call()

    call = arm.call if layer is None else behind_layer
    # A multiple of the sets: the last call of a graph is over the first set, which can be checked.
    calls = BESIDE_LAYER if layer else -(-CALLS // sets) * sets
    if layer is None and arm.bytes > LARGE:
        calls = FEW
    with serving_backend(arm.backend):
        return uncaptured(call, calls) if arm.eager else capture(call, calls)


def check_replays(
    arms: dict[str, HeadArm], replays: dict[str, Replay], hidden: Tensor, allowed: float
) -> None:
    """Check what a replay writes, after the timing, in place of the results of earlier calls.

    The sets rotate: `validate`, the calls before the capture and those in it end with the first.
    """
    for name, arm in arms.items():
        if replays[name].captured:
            result = replays[name].last
            for tensor in result:
                tensor.fill_(-7)
            replays[name].run()
            check(f"{name}, replayed", arm, hidden, result, allowed)
