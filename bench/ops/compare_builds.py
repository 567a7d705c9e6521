# SPDX-License-Identifier: Apache-2.0
"""Is one build of the library faster than another, or is this one as fast as it was?

    python -m bench.ops.compare_builds [--quick] [--parts head,vocab] [--only TEXT]
    python -m bench.ops.compare_builds --library A.so --library B.so [--repeats 3] [...]

For work on the CUDA kernels: the ops at one shape by replays of graphs, against PyTorch's own. No
files are written unless ``--out`` is given; bench.run measures what is kept. The second form
measures each build in processes of its own, by turns, and shows the best median of each.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench.harness import choose_build, models, report
from bench.harness.sizes import CAPACITY, ROUNDS
from microspec_kernels.cli.arguments import Parser, listed, positive

from . import gather, head, vocab
from .time_head import GraphTiming, measure

PARTS = ("head", "vocab", "gather")
ROWS = ",".join(map(str, head.ROWS))
SITUATIONS = ("cold", "warm")
QUICK_ROUNDS = 9
KEY = ("M", "situation", "arm")

Lines = list[dict[str, Any]]


def measure_parts(args: argparse.Namespace) -> dict[str, Lines]:
    """Return lines of figures by part."""
    torch.manual_seed(0)
    rounds = QUICK_ROUNDS if args.quick else args.rounds
    tables = {}
    if "head" in args.parts:
        model = models.SMALL if args.quick else models.MODELS[models.DEFAULT]
        shapes = [(CAPACITY, int(m)) for m in args.num_tokens.split(",")]
        tables["head"] = measure(model, shapes, rounds, GraphTiming, [args.only], SITUATIONS)
    if "vocab" in args.parts:
        tables["vocab"] = vocab.on_gpu(args.quick, rounds, args.only)
    if "gather" in args.parts:
        tables["gather"] = gather.on_gpu(args.quick, rounds, args.only)
    return {part: table for part, table in tables.items() if table}


def show(tables: dict[str, Lines]) -> None:
    for part, table in tables.items():
        sizes = {key: value for key, value in table[0].items() if key in ("V", "D", "K", "k")}
        print(f"\n{report.device()}, {part}, {sizes}\n")
        print(report.table([{k: v for k, v in r.items() if k not in sizes} for r in table]))


def measure_build(args: argparse.Namespace, library: Path, timeout: float | None = None) -> Lines:
    """Return all lines of figures of one build, measured by another process.

    Raises:
        subprocess.SubprocessError: the process failed, or took longer than ``timeout`` seconds.
    """
    command = [sys.executable, "-m", "bench.ops.compare_builds", "--json"]
    command += [
        "--parts",
        ",".join(args.parts),
        "--num-tokens",
        args.num_tokens,
        "--only",
        args.only,
    ]
    command += ["--rounds", str(args.rounds), *(["--quick"] if args.quick else [])]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=timeout,
        env=choose_build.environment(library),
    )
    tables = json.loads(done.stdout.splitlines()[-1])
    return [line for table in tables.values() for line in table]


def compare(runs: dict[Path, list[Lines]]) -> Lines:
    """Return a line for each arm: the best median of each build, and its ratio to the first's."""
    best: dict[tuple[Any, ...], dict[Path, float]] = {}
    floors: dict[tuple[Any, ...], float] = {}
    for path, repeats in runs.items():
        for line in (line for lines in repeats for line in lines):
            key = tuple(line.get(name, "") for name in KEY)
            medians = best.setdefault(key, {})
            medians[path] = min(medians.get(path, float("inf")), line["p50_us"])
            floors[key] = line["floor_us"]
    first = next(iter(runs))
    lines = []
    for key, medians in best.items():
        line = dict(zip(KEY, key, strict=True)) | {"floor_us": floors[key]}
        for number, path in enumerate(runs, start=1):
            line[f"library {number} us"] = medians[path]
        for number, path in enumerate(runs, start=1):
            if path != first:
                line[f"{number} over 1"] = medians[path] / medians[first]
        lines.append(line)
    return lines


def _num_tokens(text: str) -> str:
    """Check a list of M, and return its text, which goes on to the processes of builds."""
    listed(positive)(text)
    return text


def parsed() -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, few rounds")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--only", default="", help="only arms with this text in their name")
    parser.add_argument(
        "--num-tokens", type=_num_tokens, default=ROWS, help=f"M, rows of hidden; default {ROWS}"
    )
    parser.add_argument("--rounds", type=positive, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="folder of the CSV files")
    parser.add_argument("--library", type=Path, action="append", default=[], metavar="SO")
    parser.add_argument(
        "--repeats", type=positive, default=2, help="number of processes per library"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()
    args.parts = [part for part in args.parts.split(",") if part]
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    if absent := [str(path) for path in args.library if not path.is_file()]:
        parser.error(f"--library: no file {', '.join(absent)}")
    if args.library and (args.out or args.json):
        parser.error("--library prints one table: expected neither --out nor --json beside it")
    return args


def main() -> None:
    args = parsed()
    if not torch.cuda.is_available():
        sys.exit("no GPU: these are times of CUDA graphs")
    if args.library:
        runs: dict[Path, list[Lines]] = {path: [] for path in args.library}
        for _ in range(args.repeats):
            for path, lines in runs.items():
                lines.append(measure_build(args, path))
        print(*(f"library {n}: {path}" for n, path in enumerate(runs, start=1)), sep="\n")
        print(f"\n{report.device()}\n\n{report.table(compare(runs))}")
        return
    tables = measure_parts(args)
    if args.json:
        print(json.dumps(tables))
        return
    show(tables)
    for part, table in tables.items():
        if args.out:
            report.write_csv(args.out / f"{part}.csv", table)


if __name__ == "__main__":
    main()
