# SPDX-License-Identifier: Apache-2.0
"""Does it pay to hold the slab in the L2 cache while the draft layer runs?

    python -m bench.tuning.slab_in_l2 [--quick] [--model Llama-3.1-8B] [--out DIR]

Times the packed head in situ, over one slab as in an engine, in three ways, and writes l2.csv:

as it is     500 MB of the layer pass through the cache between two calls
persisting   the largest possible part of the cache is set aside for the slab (l2_window.py)
prefetched   another stream reads the slab while the layer's last product runs: a plain reading
             kernel in place of a dedicated prefetch

Cache that is set aside is missing elsewhere, and a read beside the layer slows the layer down. So
``whole_us``, layer and head together, is what counts. The limit belongs to the device, and each
slab has all of it: it alternates between runs of rounds, and medians are over all runs.
"""

import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.harness import models, options, report
from bench.harness.cuda_graphs import Replay, capture, difference, streams, time_rounds
from bench.harness.draft_layer import products, weights
from bench.harness.head_check import HeadArm, check
from bench.harness.inputs import id_sets, make_weight
from bench.harness.models import Model
from bench.harness.sizes import CAPACITY, K_BEST, QUICK_CAPACITY, QUICK_ROUNDS, ROUNDS
from bench.harness.supported import quantised
from bench.ops.head_arms import sparse_arms
from bench.ops.time_head import BESIDE_LAYER, LAYER, GraphTiming
from microspec_kernels.cli.arguments import listed, positive
from microspec_kernels.timing import percentiles

from .l2_window import Cache, Unavailable

AS_IT_IS, PERSISTING, PREFETCHED = "as it is", "persisting", "prefetched"
REPEATS = 2  # runs of each setting of the limit
ROWS = "1,10,60"


class Keeper(Protocol):
    most: int

    def set_aside(self, size: int) -> None: ...
    def keep(self, graph: torch.cuda.CUDAGraph, rows: Tensor) -> None: ...


class Layer:
    """A draft layer's products, where something may start ahead of the last one."""

    def __init__(self, model: Model, num_tokens: int, device: str, shared: list[Tensor]) -> None:
        self.early = products(model, num_tokens, device, shared[:-1])
        self.last = products(model, num_tokens, device, shared[-1:])

    def __call__(self) -> None:
        self.early()
        self.last()


def beside(layer: Layer, arm: HeadArm, prefetch: Tensor | None = None) -> Callable[[], Any]:
    """Return a call of the layer, then the head; the layer's last product overlaps a prefetch.

    Args:
        prefetch: the slab to read then; None: nothing.
    """

    def plain() -> Any:
        layer()
        return arm.call()

    if prefetch is None:
        return plain
    words = prefetch.view(torch.int32)
    if not prefetch.is_cuda:
        return lambda: (layer.early(), words.sum(), layer.last(), arm.call())[-1]
    _, side = streams()

    def prefetched() -> Any:
        layer.early()
        current = torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            words.sum()
        layer.last()
        result = arm.call()
        current.wait_stream(side)  # the head does not need it, but a captured stream must join
        return result

    return prefetched


def ways(layer: Layer, arm: HeadArm, cache: Keeper) -> dict[str, Replay]:
    slab = arm.operands["weight"]
    return {
        AS_IT_IS: capture(beside(layer, arm), BESIDE_LAYER),
        PREFETCHED: capture(beside(layer, arm, slab), BESIDE_LAYER),
        PERSISTING: capture(
            beside(layer, arm), BESIDE_LAYER, edit=lambda graph: cache.keep(graph, slab)
        ),
    }


def timed(
    replays: dict[str, Replay], alone: Replay, cache: Keeper, rounds: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Return rounds of each way and, beside them, of the layer alone."""
    settings = {0: (AS_IT_IS, PREFETCHED), cache.most: (PERSISTING,)}
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in replays}
    try:
        for _ in range(REPEATS):
            for size, names in settings.items():
                cache.set_aside(size)
                chosen = {name: replays[name] for name in names}
                seconds = time_rounds({**chosen, LAYER: alone}, rounds)
                for name in names:
                    taken[name][0].extend(seconds[name])
                    taken[name][1].extend(seconds[LAYER])
    finally:
        cache.set_aside(0)
    return taken


def measure(
    model: Model,
    capacity: int,
    num_tokens: list[int],
    rounds: int,
    cache: Keeper,
    device: str = "cuda",
) -> list[dict[str, Any]]:
    weight = make_weight(model.vocab_size, model.dim, device)
    shared = weights(model, device)
    ids = id_sets(model.vocab_size, capacity, 1, device)
    slabs = [weight.index_select(0, ids[0])]
    table = []
    for m in num_tokens:
        hidden = torch.randn(m, model.dim, device=device).bfloat16()
        layer = Layer(model, m, device, shared)
        alone = capture(layer, BESIDE_LAYER)
        arms = sparse_arms(weight, ids, slabs, hidden, quantised(), model.softcap)
        for name, arm in arms.items():
            if "packed" not in name:
                continue
            replays = ways(layer, arm, cache)
            for way, (whole, without) in timed(replays, alone, cache, rounds).items():
                replays[way].run()
                check(f"{name}, {way}", arm, hidden, replays[way].last, GraphTiming.allowed)
                table.append(
                    {
                        "model": model.name,
                        "K": capacity,
                        "M": m,
                        "k": K_BEST,
                        "situation": "in situ",
                        "arm": name,
                        "way": way,
                        "slab_MB": arm.operands["weight"].nbytes / 1e6,
                        "set_aside_MB": cache.most / 1e6 if way == PERSISTING else 0.0,
                        **difference(whole, without).in_us(),
                        "layer_us": percentiles(without).p50 * 1e6,
                        "whole_us": percentiles(whole).p50 * 1e6,
                    }
                )
    return table


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--model", default=models.DEFAULT, help="a name of bench/harness/models.py")
    parser.add_argument(
        "--num-tokens",
        type=listed(positive),
        default=ROWS,
        help=f"M, rows of hidden; default {ROWS}",
    )
    parser.add_argument("--rounds", type=positive, default=ROUNDS)
    args = options.parsed(parser)
    torch.manual_seed(0)
    with options.checking(parser):
        chosen = models.chosen(models.TOY.name if args.quick else args.model)
        if len(chosen) != 1:
            raise ValueError(f"--model: expected one model, got {args.model}")
    (model,) = chosen
    capacity, rounds = (QUICK_CAPACITY, QUICK_ROUNDS) if args.quick else (CAPACITY, args.rounds)
    try:
        table = measure(model, capacity, args.num_tokens, rounds, Cache())
    except Unavailable as error:
        sys.exit(str(error))
    print(f"{report.device()}\n\n{report.table(table)}")
    options.save(args, "l2.csv", table)


if __name__ == "__main__":
    main()
