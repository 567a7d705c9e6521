"""A whole EAGLE-2 draft, from the tokens just accepted to the tree of 60, with every head.

    python -m bench.draft_step [--quick]                    every model, a few minutes on an H100
    python -m bench.draft_step --model Qwen3-8B --context 8192 --arms packed,dense

The draft layer has the model's real sizes and random weights; six calls of the head, one row and
then five times ten. A draft is one CUDA graph. A part's time is the difference to a graph without
it, replayed in the same rounds: so parts that overlap count only by what they add.

gather          what the copying of new rows adds to a draft, where it runs beside the layer
gather, alone   what it adds where everything waits for it; ``hidden`` is the share that
                running beside the layer saves
vocabulary      the update, what follows from it left out

The figures go to draft_step.csv; draft_timeline.csv has one draft of each arm (draft_timeline.py).
By default the compiled, Triton and 8-bit arms, the long context and the timeline are the first
model's alone.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from microspec_kernels.cli.arguments import listed, positive
from microspec_kernels.timing import Percentiles, percentiles

from . import models, options, report
from .cuda_graphs import capture, difference, time_rounds
from .draft import Draft, Shape
from .draft_heads import Head, NanoSpec, Observed, Sparse, static
from .draft_layer import DraftLayer
from .draft_timeline import timeline
from .gpu_head import quantised
from .head import CAPACITY, has_triton
from .head_arms import K_BEST, NAMES, make_weight, serving_backend
from .models import Model

WHOLE, ALONE = "draft", "gather, alone"
CONTEXTS = (1024, 8192)
QUICK_ROUNDS = 3

Heads = dict[str, tuple[Callable[[], Head], str | None]]  # and the backend that serves each


def heads(
    model: Model, weight: torch.Tensor, capacity: int, observed: Observed, more: bool, triton: bool
) -> Heads:
    """How to make each arm's head, anew for every graph: each has a vocabulary of its own."""
    sparse = partial(Sparse, model, weight, capacity, observed)
    nanospec = partial(NanoSpec, model, weight, capacity, observed)
    fixed = static(model, weight)
    assert fixed.ids is not None
    static_head = partial(Head, model, fixed.weight, fixed.ids)
    made: Heads = {
        "dense": (lambda: Head(model, weight), None),
        "static 32k": (static_head, None),
        "NanoSpec": (nanospec, None),
        "indexed": (sparse, None),
        "packed": (partial(sparse, slab=weight.dtype), None),
    }
    if more:
        for dtype in quantised():
            made[f"packed {NAMES[dtype]}"] = (partial(sparse, slab=dtype), None)
    if more and triton:
        made["Triton indexed"] = (sparse, "triton")
        made["Triton packed"] = (partial(sparse, slab=weight.dtype), "triton")
        made["dense, compiled"] = (lambda: Head(model, weight, compile_too=True), None)
        made["static 32k, compiled"] = (partial(static_head, compile_too=True), None)
        made["NanoSpec, compiled"] = (partial(nanospec, compile_too=True), None)
    return made


def variants(head: Head, device: str) -> dict[str, tuple[frozenset[str], bool]]:
    """Name → parts left out, and whether the draft waits for the gather: a CPU always does."""
    left_out = {WHOLE: (), "layer": ("layer",), "head": ("head",), "tree": ("tree",)}
    if isinstance(head, Sparse):
        # Without an update there is nothing to gather: the one is measured without the other.
        left_out["vocabulary"] = ("vocabulary", "gather")
    if isinstance(head, NanoSpec) or (isinstance(head, Sparse) and head.slab is not None):
        left_out["gather"] = ("gather",)
    made = {name: (frozenset(parts), False) for name, parts in left_out.items()}
    if "gather" in made and device == "cuda":
        made[ALONE] = (frozenset(), True)
    return made


def parts_of(seconds: dict[str, list[float]]) -> dict[str, Percentiles]:
    """Times of a draft's parts from the rounds of its variants."""
    whole = seconds[WHOLE]
    still = seconds.get("gather", whole)  # a draft to which nothing is brought
    parts = {WHOLE: percentiles(whole)}
    for name, taken in seconds.items():
        if name == "vocabulary":
            parts[name] = difference(still, taken)
        elif name == ALONE:
            parts[name] = difference(taken, still)
        elif name != WHOLE:
            parts[name] = difference(whole, taken)
    return parts


def measure(
    model: Model, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines of figures, and of the timeline."""
    shape, observed, only = args.shape, args.observed, args.arms.split(",")
    weight = make_weight(model.vocab_size, model.dim, args.device)
    more = bool(args.model) or model.name in (models.DEFAULT, models.TOY.name)
    made = heads(model, weight, args.k, observed, more, more and args.compile)
    made = {name: how for name, how in made.items() if any(text in name for text in only)}
    if not made:
        raise SystemExit(f"--arms {args.arms}: no such arm")
    table, lines = [], []
    for context in contexts_of(model, args):
        common = {
            "model": model.name,
            "V": model.vocab_size,
            "D": model.dim,
            "K": args.k,
            "context": context,
            "depth": shape.depth,
            "top_k": K_BEST,
            "tree": shape.size,
            "accepted": shape.accepted,
            "observed": observed.tokens,
            "new": observed.new,
        }
        layer = DraftLayer(model, weight, context, shape.own, args.compile)
        drafts: dict[tuple[str, str], Draft] = {}
        replays = {}
        for arm, (make, backend) in made.items():
            with serving_backend(backend):
                for variant, (without, serial) in variants(make(), args.device).items():
                    draft = Draft(layer, make(), shape, without, serial)
                    if variant == WHOLE:
                        draft.head.validate(arm)
                    drafts[arm, variant] = draft
                    replays[arm, variant] = capture(draft, 1)
        seconds = time_rounds(replays, args.rounds)
        times = {}
        for arm, (_, backend) in made.items():
            times[arm] = parts_of({v: taken for (a, v), taken in seconds.items() if a == arm})
            with serving_backend(backend):
                # The replays have moved vocabulary and slab on: they must still be right.
                drafts[arm, WHOLE].head.validate(f"{arm}, replayed")
                if more:
                    drawn = timeline(drafts[arm, WHOLE])
                    lines += [{**common, "arm": arm, **one} for one in drawn]
        table += rows(common, times)
    return table, lines


def rows(common: dict[str, Any], times: dict[str, dict[str, Percentiles]]) -> list[dict[str, Any]]:
    """A line a part; a whole draft also with what it takes of the best dense and static ones."""

    def best(kind: str) -> float | None:
        return min((t[WHOLE].p50 for arm, t in times.items() if arm.startswith(kind)), default=None)

    table = []
    dense, fixed = best("dense"), best("static")
    for arm, parts in times.items():
        whole = parts[WHOLE].p50
        for part, time in parts.items():
            hidden: float | str = ""
            if part == "gather" and ALONE in parts:
                hidden = 1 - time.p50 / parts[ALONE].p50
            is_whole = part == WHOLE
            table.append(
                {
                    **common,
                    "arm": arm,
                    "part": part,
                    **time.in_us(),
                    "share": time.p50 / whole,
                    "hidden": hidden,
                    "over_dense": whole / dense if dense and is_whole else "",
                    "over_static": whole / fixed if fixed and is_whole else "",
                }
            )
    return table


def parsed() -> argparse.Namespace:
    parser = options.parser(__doc__)
    parser.add_argument("--model", help="names of bench/models.py, or all")
    parser.add_argument(
        "--context", type=listed(positive), help=f"verified tokens; default {CONTEXTS}"
    )
    parser.add_argument("--k", type=positive, help=f"size of the vocabulary; default {CAPACITY}")
    parser.add_argument(
        "--new", type=positive, help=f"tokens new to it a step; default {Observed.new}"
    )
    parser.add_argument(
        "--accepted", type=positive, default=Shape.accepted, help="tokens read first"
    )
    parser.add_argument("--arms", default="", help="texts of which an arm's name has one")
    parser.add_argument("--rounds", type=positive, help="default 31, on a CPU 7")
    args = options.parsed(parser)
    on_gpu, toy = args.device == "cuda", args.quick and not args.model
    # On a CPU it is the first model alone: the others take long and tell nothing new.
    default = models.TOY.name if toy else "all" if on_gpu else models.DEFAULT
    try:
        args.models = models.chosen(args.model or default)
    except ValueError as error:
        parser.error(str(error))
    args.k = args.k or (300 if toy else CAPACITY)
    new = args.new or (16 if toy else Observed.new)
    args.observed = Observed(new + Observed.tokens - Observed.new, new)
    args.rounds = QUICK_ROUNDS if args.quick else args.rounds or (31 if on_gpu else 7)
    args.compile = on_gpu and not args.quick and has_triton()
    args.shape = Shape(accepted=args.accepted)
    return args


def contexts_of(model: Model, args: argparse.Namespace) -> list[int]:
    if args.context:
        return list(args.context)
    if model == models.TOY:
        return [64]
    both = args.device == "cuda" and (args.model or model.name == models.DEFAULT)
    return list(CONTEXTS if both else CONTEXTS[:1])


def main() -> None:
    args = parsed()
    torch.manual_seed(0)
    table: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for model in args.models:
        measured, drawn = measure(model, args)
        table, lines = table + measured, lines + drawn
        # After each model: what has been measured is kept if the next one takes too long.
        options.save(args, "draft_step.csv", table)
        if lines:
            options.save(args, "draft_timeline.csv", lines)
    shown = ("model", "context", "arm", "part", "p50_us", "share", "hidden", "over_dense")
    print(f"{report.device()}\n")
    print(report.table([{name: line[name] for name in shown} for line in table]))


if __name__ == "__main__":
    main()
