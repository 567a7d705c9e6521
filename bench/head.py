"""The head alone, over models, sizes of the vocabulary and rows: ours against everybody's.

    python -m bench.head [--quick]                        a few minutes on an H100
    python -m bench.head --model Qwen3-8B,Gemma-3-4B --k 1024,3072 --rows 1 --arms NanoSpec,packed
    python -m bench.head --model all --k all --rows all   everything, half an hour or more

Every arm does the whole job (projection, log-probabilities, the k best with their token ids), is
validated against the fp64 reference, and is then timed in the situations that cpu_head.py and
gpu_head.py describe. By default: the first model at every K with M = 10 and every M with K = 3072,
the others at K = 3072 with M = 1 and 10; on a CPU the first model alone, with M = 1, 10 and 60.
With ``--arms`` an arm needs one of the texts in its name.
"""

import argparse
from typing import Any

import torch

from microspec_kernels.cli.arguments import positive

from . import cpu_head, gpu_head, models, options, report

CAPACITIES = (1024, 2048, 3072, 8192)
ROWS = (1, 4, 10, 16, 32, 60)
CAPACITY, LEVEL = 3072, 10  # the papers' capacity; the rows of a level of EAGLE-2's tree

QUICK_ROUNDS = 3

Shapes = list[tuple[int, int]]  # (K, M)


def plan(
    device: str, names: str | None = None, k: str | None = None, rows: str | None = None
) -> dict[models.Model, Shapes]:
    """What to measure: the product of what is asked for, else the default above."""

    def numbers(text: str | None, every: tuple[int, ...]) -> list[int]:
        return list(every) if text == "all" else [int(n) for n in (text or "").split(",") if n]

    asked = models.chosen(names) if names else []
    if k or rows:
        shapes = [
            (capacity, m)
            for capacity in numbers(k, CAPACITIES) or [CAPACITY]
            for m in numbers(rows, ROWS) or [LEVEL]
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


def has_triton() -> bool:
    """Whether the package's Triton kernels and `torch.compile` can run on this GPU."""
    from torch.utils._triton import has_triton as triton_runs

    return bool(triton_runs())


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All lines of figures; kept after each model, in case the next one takes too long."""
    work = plan(args.device, args.model, args.k, args.rows)
    if args.quick and not (args.model or args.k or args.rows):
        work = {models.TOY: [(300, 1), (300, 4)]}
    rounds = QUICK_ROUNDS if args.quick else args.rounds
    chosen = [text for text in args.situations.split(",") if text]
    on_gpu = args.device == "cuda"
    triton = on_gpu and has_triton()
    table = []
    for model, shapes in work.items():
        options_of = {
            "only": args.arms.split(","),
            "situations": chosen or (gpu_head if on_gpu else cpu_head).SITUATIONS,
        }
        if on_gpu:
            # To compile takes longer than to measure.
            usual = (1, LEVEL) if model.name == models.DEFAULT else ()
            rows = [m for _, m in shapes] if args.compile else usual
            options_of |= {"triton": triton, "compile_rows": rows if triton else ()}
            table += gpu_head.measure_model(model, shapes, rounds, **options_of)
        else:
            table += cpu_head.measure(model, shapes, rounds, **options_of)
        options.save(args, "head.csv", table)
    return table


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--model", help="names of bench/models.py, or all")
    parser.add_argument("--k", help=f"sizes of the active vocabulary, or all: {CAPACITIES}")
    parser.add_argument("--rows", help=f"of hidden, or all: {ROWS}")
    parser.add_argument("--arms", default="", help="texts of which an arm's name has one")
    parser.add_argument("--situations", default="", help="cold, warm, in situ; CPU: repeated")
    parser.add_argument("--compile", action="store_true", help="compiled arms everywhere")
    parser.add_argument("--rounds", type=positive, default=31)
    args = options.parsed(parser)
    torch.manual_seed(0)
    try:
        rows = measured(args)
    except ValueError as error:
        parser.error(str(error))
    print(f"{report.device()}\n\n{report.table(rows)}")


if __name__ == "__main__":
    main()
