# SPDX-License-Identifier: Apache-2.0
"""How many tokens a second does each head give, target included, at a model's real shapes?

    python -m bench.e2e                         all pairs, on a GPU
    python -m bench.e2e --pairs Qwen3-8B --context 8192 --texts 1 --tau dense=3.9,packed=3.8
    python -m bench.e2e --quick                 a toy, also on a CPU: shows that it works
    python -m bench.e2e --floor 3900            no measurement: bytes / (GB/s)

A step goes from the tokens just accepted to the next ones: vocabulary, gather, a draft of depth 6
with the head in it, the target over the tree of 60, acceptance. It is one CUDA graph, at real sizes
and with random weights, which cannot have an acceptance of their own. So

    tokens a second = texts · τ / time of a step,

with τ as published for each head, or from --tau. A part's time is the difference to a graph without
it, replayed in the same rounds. "rest" is the tree, the acceptance and the caches.

The figures go to e2e_shapes.csv, and a report to e2e_shapes.md.
"""

import argparse
import gc
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from bench.draft.heads import (
    DraftHead,
    NanoSpecDraftHead,
    Nvfp4DraftHead,
    ObservedTokens,
    SparseDraftHead,
    static_head,
)
from bench.harness import options, report
from bench.harness.cuda_graphs import capture, difference, time_rounds
from bench.harness.sizes import CAPACITY, QUICK_CAPACITY, QUICK_ROUNDS, ROUNDS
from bench.harness.supported import has_triton
from microspec_kernels.cli.arguments import listed, positive
from microspec_kernels.timing import Percentiles, percentiles

from .shapes import PAIRS, PUBLISHED, QUICK, Pair, Setting, bytes_of, source_of
from .step import Alone, Models, Step

ALONE, WHOLE = "target alone", "step"
SETTING = ("pair", "texts", "context", "arm")
LEFT_OUT = {"target": ("target",), "layer": ("layer",), "head": ("head",)}
Seconds = Mapping[tuple[str, str], list[float]]  # by arm and variant, round by round


def heads(models: Models, setting: Setting) -> dict[str, Callable[[], DraftHead]]:
    """Return how to make each arm's head. Each graph gets a new one, with its vocabulary."""
    model, weight = models.pair.model, models.lm_head
    fixed = static_head(model, weight)
    own = model, weight, setting.capacity, setting.observed
    return {
        "dense": lambda: DraftHead(model, weight),
        "dense nvfp4": lambda: Nvfp4DraftHead(model, weight),
        "static 32k": lambda: DraftHead(model, fixed.weight, fixed.ids),
        "NanoSpec": partial(NanoSpecDraftHead, *own),
        "indexed": partial(SparseDraftHead, *own),
        "packed": partial(SparseDraftHead, *own, slab=weight.dtype),
    }


def variants(arm: str) -> dict[str, frozenset[str]]:
    """Return, by name, the parts that a graph leaves out."""
    parts: dict[str, tuple[str, ...]] = {WHOLE: (), **LEFT_OUT}
    if arm in ("indexed", "packed"):
        # Without an update there is nothing to gather, so both are left out together.
        parts["vocabulary"] = ("vocabulary", "gather")
    if arm in ("NanoSpec", "packed"):
        parts["gather"] = ("gather",)
    return {name: frozenset(left_out) for name, left_out in parts.items()}


def measure(models: Models, setting: Setting, args: argparse.Namespace) -> Seconds:
    """Return the seconds of every graph."""
    models.prepare(setting, args.compile)
    made = {
        arm: make
        for arm, make in heads(models, setting).items()
        if any(text in arm for text in args.arms)
    }
    alone = Alone(models, setting)
    steps: dict[tuple[str, str], Any] = {(ALONE, WHOLE): alone}
    for arm, make in made.items():
        # The vocabularies learn from the target's best three tokens; the others need its choice.
        learns = arm not in ("dense", "dense nvfp4", "static 32k")
        for name, without in variants(arm).items():
            steps[arm, name] = Step(models, setting, make(), learns, without)
    seconds = time_rounds({name: capture(step, 1) for name, step in steps.items()}, args.rounds)
    for arm in made:  # the replays have changed vocabulary and slab, which must still be right
        steps[arm, WHOLE].head.validate(arm)
    return seconds


def parts_of(seconds: Mapping[str, list[float]]) -> dict[str, Percentiles]:
    """Return the times of a step's parts from the rounds of its variants."""
    whole = seconds[WHOLE]
    before = {"vocabulary": seconds.get("gather", whole)}
    parts = {
        name: difference(before.get(name, whole), taken)
        for name, taken in seconds.items()
        if name != WHOLE
    }
    if parts:
        rounds = zip(whole, *(
            [a - b for a, b in zip(before.get(name, whole), seconds[name], strict=True)]
            for name in parts
        ), strict=True)  # fmt: skip
        parts["rest"] = percentiles([first - sum(others) for first, *others in rounds])
    return {WHOLE: percentiles(whole), **parts}


def rows(
    pair: Pair, setting: Setting, seconds: Seconds, given: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return a line for each part of each arm; whole steps have tokens a second."""
    taus = {ALONE: 1.0, **PUBLISHED, **given}
    times = {
        arm: parts_of({name: taken for (one, name), taken in seconds.items() if one == arm})
        for arm in dict.fromkeys(arm for arm, _ in seconds)
    }
    rates = {arm: setting.texts * taus[arm] / parts[WHOLE].p50 for arm, parts in times.items()}
    lines = []
    for arm, parts in times.items():
        for part, time in parts.items():
            line: dict[str, Any] = {
                "pair": pair.name, "V": pair.model.vocab_size, "D": pair.model.dim,
                "layers": pair.layers, "draft": pair.draft, "texts": setting.texts,
                "context": setting.context, "K": setting.capacity, "depth": setting.depth,
                "tree": setting.size, "new": setting.observed.new, "arm": arm, "part": part,
                **time.in_us(), "share": time.p50 / parts[WHOLE].p50,
            }  # fmt: skip
            names = (
                "GB", "tau", "tau_from", "tokens_per_s", "over_alone", "over_dense",
                "over_dense_at_equal_tau",
            )  # fmt: skip
            line |= dict.fromkeys(names, "")
            if part == WHOLE:
                line |= {
                    "GB": sum(bytes_of(pair, setting, arm).values()) / 1e9,
                    "tau": taus[arm],
                    "tau_from": "" if arm == ALONE else source_of(pair, given),
                    "tokens_per_s": rates[arm],
                    "over_alone": rates[arm] / rates[ALONE],
                }
                if "dense" in times:
                    line["over_dense"] = rates[arm] / rates["dense"]
                if "dense" in times and arm != ALONE:
                    equal = times["dense"][WHOLE].p50 / time.p50
                    line["over_dense_at_equal_tau"] = equal
            lines.append(line)
    return lines


def floor(pair: Pair, setting: Setting, rate: float, given: Mapping[str, float]) -> Any:
    """Return the lines of a device that does nothing but read, at `rate` bytes a second."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for arm in (ALONE, *PUBLISHED):
        parts = {name: size / rate for name, size in bytes_of(pair, setting, arm).items()}
        whole = sum(parts.values())
        seconds[arm, WHOLE] = [whole]
        for name, taken in parts.items():
            if taken and arm != ALONE:
                seconds[arm, name] = [whole - taken]
    return rows(pair, setting, seconds, given)


def whole_steps(lines: list[dict[str, Any]]) -> str:
    """Return the table of whole steps, and where their acceptance comes from."""
    names = (*SETTING, "p50_us", "GB", "tau", "tokens_per_s", "over_alone", "over_dense",
             "over_dense_at_equal_tau")  # fmt: skip
    steps = [{name: line[name] for name in names} for line in lines if line["part"] == WHOLE]
    sources = dict.fromkeys(
        f"- τ of {line['pair']}: {line['tau_from']}" for line in lines if line["tau_from"]
    )
    return "\n".join([*sources, "", report.table(steps), ""])


def written(lines: list[dict[str, Any]]) -> str:
    """Return the report of a measurement: whole steps, then their parts."""
    every = list(dict.fromkeys(line["part"] for line in lines if line["part"] != WHOLE))
    by_arm: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in lines:
        if line["part"] != WHOLE:
            key = tuple(line[name] for name in SETTING)
            empty = {**dict(zip(SETTING, key, strict=True)), **dict.fromkeys(every, "")}
            by_arm.setdefault(key, empty)[line["part"]] = line["p50_us"]
    return "\n".join([
        f"# Steps at real shapes: {report.device()}", "",
        *(__doc__ or "").split("\n\n")[2:5], "",
        "Medians, in microseconds. The weights are random, so τ is not measured here.", "",
        whole_steps(lines), "The parts of a step:", "", report.table(list(by_arm.values())), "",
        ", ".join(f"{name} {value}" for name, value in report.facts().items()), "",
    ])  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = options.parser(__doc__)
    parser.add_argument("--pairs", type=listed(str), help=f"of {', '.join(PAIRS)}; default all")
    parser.add_argument("--context", type=listed(positive), help="default 1024,8192")
    parser.add_argument("--texts", type=listed(positive), help="batch sizes; default 1,8")
    parser.add_argument("--k", type=positive, help=f"K, the vocabulary's size; default {CAPACITY}")
    parser.add_argument("--tau", default="", help="acceptance, ARM=TAU,…; default the papers'")
    parser.add_argument(
        "--arms", type=listed(str), help="only arms with one of these texts in their name"
    )
    parser.add_argument("--rounds", type=positive, help=f"default {ROUNDS}")
    parser.add_argument("--floor", type=positive, metavar="GB/S", help="compute, do not measure")
    parser.add_argument("--plain", action="store_true", help="compile no small operations")
    args = options.parsed(parser)
    toy = args.quick and not args.pairs
    if unknown := set(args.pairs or ()) - set(PAIRS):
        parser.error(f"--pairs: no such pair: {', '.join(sorted(unknown))}")
    args.chosen = [QUICK] if toy else [PAIRS[name] for name in args.pairs or PAIRS]
    if args.device == "cpu" and not (toy or args.floor):
        parser.error("real shapes need a GPU; here there are --quick and --floor GB/S")
    args.arms = args.arms or [""]
    if not any(text in arm for text in args.arms for arm in PUBLISHED):
        parser.error(f"--arms: no such arm; there are {', '.join(PUBLISHED)}")
    args.given = {}
    for word in filter(None, args.tau.split(",")):
        arm, _, value = word.partition("=")
        with suppress(ValueError):
            args.given[arm] = float(value)
        if arm not in PUBLISHED or not args.given.get(arm, 0) >= 1:
            parser.error(f"--tau: expected ARM=TAU with {', '.join(PUBLISHED)}, got {word!r}")
    args.k = args.k or (QUICK_CAPACITY if toy else CAPACITY)
    args.sizes = {"depth": 2, "size": 8, "seen": ObservedTokens(40, 16)} if toy else {}
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    args.context = args.context or ([64] if toy else [1024, 8192])
    args.texts = args.texts or ([2] if toy else [1, 8])
    args.compile = args.device == "cuda" and not (args.quick or args.plain) and has_triton()
    return args


def main() -> None:
    args = parsed()
    torch.manual_seed(0)
    lines: list[dict[str, Any]] = []
    for pair in args.chosen:
        models = None if args.floor else Models(pair, args.device)
        for context in args.context:
            for texts in args.texts:
                setting = Setting(texts, context, args.k, **args.sizes)
                if models is None:
                    lines += floor(pair, setting, 1e9 * args.floor, args.given)
                    continue
                lines += rows(pair, setting, measure(models, setting, args), args.given)
                gc.collect()  # a setting's graphs hold their memory
                # Write after each setting, in case the next one takes too long.
                options.save(args, "e2e_shapes.csv", lines, key="pair")
                if args.out is not None or not args.quick:
                    path = (args.out or report.folder()) / "e2e_shapes.md"
                    path.write_text(written(lines), encoding="utf-8")
    if args.floor:
        print(f"Computed from bytes at {args.floor} GB/s; nothing was measured.\n")
        print(whole_steps(lines))
    else:
        print(written(lines))


if __name__ == "__main__":
    main()
