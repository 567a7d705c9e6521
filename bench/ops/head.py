# SPDX-License-Identifier: Apache-2.0
"""How fast is sparse_head, against the dense head and every other way to do its job?

    python -m bench.ops.head [--quick]                        a few minutes on an H100
    python -m bench.ops.head --model Qwen3-8B,Gemma-3-4B --k 1024,3072 --arms NanoSpec,packed
    python -m bench.ops.head --model all --k all --num-tokens all   everything, half an hour or more

Every arm does the whole job (projection, log-probabilities, the k best with their token ids). It is
validated against the fp64 reference and then timed in the situations that time_head.py describes.
Default shapes: the first model at every K with M = 10 and at every M with K = 3072; the others at
K = 3072 with M = 1 and 10. On a CPU the first model alone, at K = 3072 with M = 1, 10 and 60. With
``--arms``, an arm is measured if its name has one of the texts.
"""

import argparse
from typing import Any

import torch

from bench.harness import models, options, report
from bench.harness.sizes import CAPACITY, LEVEL, QUICK_CAPACITY, QUICK_ROUNDS, ROUNDS
from bench.harness.supported import has_triton
from microspec_kernels.cli.arguments import positive

from .time_head import CallTiming, GraphTiming, measure

CAPACITIES = (1024, 2048, CAPACITY, 8192)
ROWS = (1, 4, LEVEL, 16, 32, 60)

Shapes = list[tuple[int, int]]  # (K, M)


def plan(
    device: str, names: str | None = None, k: str | None = None, num_tokens: str | None = None
) -> dict[models.Model, Shapes]:
    """Choose what to measure: the product of what is asked for, else the default shapes."""

    def numbers(text: str | None, every: tuple[int, ...]) -> list[int]:
        return list(every) if text == "all" else [int(n) for n in (text or "").split(",") if n]

    asked = models.chosen(names) if names else []
    if k or num_tokens:
        shapes = [
            (capacity, m)
            for capacity in numbers(k, CAPACITIES) or [CAPACITY]
            for m in numbers(num_tokens, ROWS) or [LEVEL]
        ]
        return dict.fromkeys(asked or models.chosen(models.DEFAULT), shapes)
    if device == "cpu":
        shapes = [(CAPACITY, m) for m in (1, LEVEL, 60)]
        return dict.fromkeys(asked or models.chosen(models.DEFAULT), shapes)
    full = [(capacity, LEVEL) for capacity in CAPACITIES if capacity != CAPACITY]
    full += [(CAPACITY, m) for m in ROWS]
    short = [(CAPACITY, m) for m in (1, LEVEL)]
    first = models.MODELS[models.DEFAULT]
    return {
        model: full if model == first or names else short for model in asked or models.chosen("all")
    }


def measure_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return all figures. They are written after each model, in case the next takes too long."""
    work = plan(args.device, args.model, args.k, args.num_tokens)
    if args.quick and not (args.model or args.k or args.num_tokens):
        work = {models.TOY: [(QUICK_CAPACITY, 1), (QUICK_CAPACITY, 4)]}
    rounds = QUICK_ROUNDS if args.quick else args.rounds
    situations = [text for text in args.situations.split(",") if text]
    only = args.arms.split(",")
    triton = args.device == "cuda" and has_triton()
    table = []
    for model, shapes in work.items():
        if args.device == "cpu":
            table += measure(model, shapes, rounds, CallTiming, only, situations)
        else:
            # To compile takes longer than to measure.
            by_default = (1, LEVEL) if model.name == models.DEFAULT else ()
            rows = [m for _, m in shapes] if args.compile else by_default
            table += measure(
                model, shapes, rounds, GraphTiming, only, situations,
                triton=triton, compile_rows=rows if triton else (),
            )  # fmt: skip
        if not table:
            raise ValueError(f"--arms: expected a part of an arm's name, got {args.arms}")
        options.save(args, "head.csv", table)
    return table


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--model", help="names of bench/harness/models.py, or all")
    parser.add_argument("--k", help=f"sizes of the active vocabulary, or all: {CAPACITIES}")
    parser.add_argument("--num-tokens", help=f"M, rows of hidden, or all: {ROWS}")
    parser.add_argument(
        "--arms", default="", help="only arms with one of these texts in their name"
    )
    parser.add_argument(
        "--situations", default="", help="of cold, warm, in situ; on a CPU of repeated, in situ"
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile's arms for every shape"
    )
    parser.add_argument("--rounds", type=positive, default=ROUNDS)
    args = options.parsed(parser)
    torch.manual_seed(0)
    try:
        rows = measure_all(args)
    except ValueError as error:
        parser.error(str(error))
    print(f"{report.device()}\n\n{report.table(rows)}")


if __name__ == "__main__":
    main()
