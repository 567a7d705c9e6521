# SPDX-License-Identifier: Apache-2.0
"""What does a whole EAGLE-2 draft cost with each head, and which part of it is the head?

    python -m bench.draft.step [--quick]                    every model, a few minutes on an H100
    python -m bench.draft.step --model Qwen3-8B --context 8192 --arms packed,dense

A draft goes from the tokens just accepted to the tree of 60. Its layer has the model's real sizes
and random weights; it calls the head six times, once with one row and five times with ten. A draft
is one CUDA graph. A part's time is the difference to a graph without it, replayed in the same
rounds, so parts that overlap count only by what they add.

gather          what copying new rows adds to a draft when it runs beside the layer
gather, alone   what it adds when everything waits for it; ``hidden`` is the share that running
                beside the layer saves
vocabulary      the update, without what follows from it

The figures go to draft_step.csv, and one draft of each arm to draft_timeline.csv (timeline.py). By
default only the first model has the compiled, Triton and 8-bit arms, the long context and the
timeline.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.harness import models, options, report
from bench.harness.cuda_graphs import capture, difference, time_rounds
from bench.harness.draft_layer import DraftLayer
from bench.harness.head_check import serving_backend
from bench.harness.inputs import make_weight
from bench.harness.models import Model
from bench.harness.sizes import CAPACITY, K_BEST, QUICK_CAPACITY, QUICK_ROUNDS, ROUNDS
from bench.harness.supported import DTYPE_NAMES, has_triton, quantised
from microspec_kernels.cli.arguments import listed, positive
from microspec_kernels.timing import Percentiles, percentiles

from .graph import CapturableDraft, DraftShape
from .heads import DraftHead, NanoSpecDraftHead, ObservedTokens, SparseDraftHead, static_head
from .timeline import timeline

WHOLE, ALONE = "draft", "gather, alone"
CONTEXTS = (1024, 8192)
CPU_ROUNDS = 7

# For each arm, how to make its head, and the backend that serves it.
Heads = dict[str, tuple[Callable[[], DraftHead], str | None]]


def heads(
    model: Model,
    weight: torch.Tensor,
    capacity: int,
    observed: ObservedTokens,
    more: bool,
    triton: bool,
) -> Heads:
    """Return how to make each arm's head. Each graph gets a new one, with its vocabulary."""
    sparse = partial(SparseDraftHead, model, weight, capacity, observed)
    nanospec = partial(NanoSpecDraftHead, model, weight, capacity, observed)
    fixed = static_head(model, weight)
    assert fixed.ids is not None
    static = partial(DraftHead, model, fixed.weight, fixed.ids)
    arms: Heads = {
        "dense": (lambda: DraftHead(model, weight), None),
        "static 32k": (static, None),
        "NanoSpec": (nanospec, None),
        "indexed": (sparse, None),
        "packed": (partial(sparse, slab=weight.dtype), None),
    }
    if more:
        for dtype in quantised():
            arms[f"packed {DTYPE_NAMES[dtype]}"] = (partial(sparse, slab=dtype), None)
    if more and triton:
        arms["Triton indexed"] = (sparse, "triton")
        arms["Triton packed"] = (partial(sparse, slab=weight.dtype), "triton")
        arms["dense, compiled"] = (lambda: DraftHead(model, weight, compile_too=True), None)
        arms["static 32k, compiled"] = (partial(static, compile_too=True), None)
        arms["NanoSpec, compiled"] = (partial(nanospec, compile_too=True), None)
    return arms


def variants(head: DraftHead, device: str) -> dict[str, tuple[frozenset[str], bool]]:
    """Return, by name, the parts left out and whether the draft waits for the gather.

    On a CPU it always waits, so there the variant that waits is left out.
    """
    left_out = {WHOLE: (), "layer": ("layer",), "head": ("head",), "tree": ("tree",)}
    if isinstance(head, SparseDraftHead):
        # Without an update there is nothing to gather, so both are left out together.
        left_out["vocabulary"] = ("vocabulary", "gather")
    if isinstance(head, NanoSpecDraftHead) or (
        isinstance(head, SparseDraftHead) and head.slab is not None
    ):
        left_out["gather"] = ("gather",)
    result = {name: (frozenset(parts), False) for name, parts in left_out.items()}
    if "gather" in result and device == "cuda":
        result[ALONE] = (frozenset(), True)
    return result


def parts_of(seconds: dict[str, list[float]]) -> dict[str, Percentiles]:
    """Return the times of a draft's parts from the rounds of its variants."""
    whole = seconds[WHOLE]
    no_gather = seconds.get("gather", whole)
    parts = {WHOLE: percentiles(whole)}
    for name, taken in seconds.items():
        if name == "vocabulary":
            parts[name] = difference(no_gather, taken)
        elif name == ALONE:
            parts[name] = difference(taken, no_gather)
        elif name != WHOLE:
            parts[name] = difference(whole, taken)
    return parts


def measure(
    model: Model, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return lines of figures, and of the timeline."""
    shape, observed, only = args.shape, args.observed, args.arms.split(",")
    weight = make_weight(model.vocab_size, model.dim, args.device)
    more = bool(args.model) or model.name in (models.DEFAULT, models.TOY.name)
    arms = heads(model, weight, args.k, observed, more, more and args.compile)
    arms = {name: how for name, how in arms.items() if any(text in name for text in only)}
    if not arms:
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
        layer = DraftLayer(model, weight, context, shape.drafted, args.compile)
        drafts: dict[tuple[str, str], CapturableDraft] = {}
        replays = {}
        for arm, (make, backend) in arms.items():
            with serving_backend(backend):
                for variant, (without, serial) in variants(make(), args.device).items():
                    draft = CapturableDraft(layer, make(), shape, without, serial)
                    if variant == WHOLE:
                        draft.head.validate(arm)
                    drafts[arm, variant] = draft
                    replays[arm, variant] = capture(draft, 1)
        seconds = time_rounds(replays, args.rounds)
        times = {}
        for arm, (_, backend) in arms.items():
            times[arm] = parts_of({v: taken for (a, v), taken in seconds.items() if a == arm})
            with serving_backend(backend):
                # The replays have changed vocabulary and slab, which must still be right.
                drafts[arm, WHOLE].head.validate(f"{arm}, replayed")
                if more:
                    spans = timeline(drafts[arm, WHOLE])
                    lines += [{**common, "arm": arm, **span} for span in spans]
        table += rows(common, times)
    return table, lines


def rows(common: dict[str, Any], times: dict[str, dict[str, Percentiles]]) -> list[dict[str, Any]]:
    """Return a line for each part, and compare whole drafts with the best dense and static ones."""

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
    parser.add_argument("--model", help="names of bench/harness/models.py, or all")
    parser.add_argument(
        "--context", type=listed(positive), help=f"numbers of verified tokens; default {CONTEXTS}"
    )
    parser.add_argument(
        "--k", type=positive, help=f"K, size of the active vocabulary; default {CAPACITY}"
    )
    parser.add_argument(
        "--new", type=positive, help=f"new tokens per step; default {ObservedTokens.new}"
    )
    parser.add_argument(
        "--accepted",
        type=positive,
        default=DraftShape.accepted,
        help="accepted tokens that the draft reads first",
    )
    parser.add_argument(
        "--arms", default="", help="only arms with one of these texts in their name"
    )
    parser.add_argument("--rounds", type=positive, help=f"default {ROUNDS}; {CPU_ROUNDS} on a CPU")
    args = options.parsed(parser)
    on_gpu, toy = args.device == "cuda", args.quick and not args.model
    # On a CPU only the first model by default: the others take long and show nothing new.
    default = models.TOY.name if toy else "all" if on_gpu else models.DEFAULT
    try:
        args.models = models.chosen(args.model or default)
    except ValueError as error:
        parser.error(str(error))
    args.k = args.k or (QUICK_CAPACITY if toy else CAPACITY)
    new = args.new or (16 if toy else ObservedTokens.new)
    args.observed = ObservedTokens(new + ObservedTokens.tokens - ObservedTokens.new, new)
    args.rounds = QUICK_ROUNDS if args.quick else args.rounds or (ROUNDS if on_gpu else CPU_ROUNDS)
    args.compile = on_gpu and not args.quick and has_triton()
    args.shape = DraftShape(accepted=args.accepted)
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
        figures, spans = measure(model, args)
        table, lines = table + figures, lines + spans
        # Write after each model, in case the next one takes too long.
        options.save(args, "draft_step.csv", table)
        if lines:
            options.save(args, "draft_timeline.csv", lines)
    shown = ("model", "context", "arm", "part", "p50_us", "share", "hidden", "over_dense")
    print(f"{report.device()}\n")
    print(report.table([{name: line[name] for name in shown} for line in table]))


if __name__ == "__main__":
    main()
