"""The ops on a GPU against PyTorch's own, by replays of CUDA graphs.

    python -m bench.gpu [--quick] [--parts head,vocab,gather] [--only TEXT] [--rows 1,10,60]
    python -m bench.gpu --library A.so --library B.so [--repeats 3] [...]

While working on the kernels: the head at one shape, and no files (``--out`` writes CSV); bench.run
measures what is kept. The second compares builds of the library: each is measured in processes of
its own, in turn, and the table shows the best median of each.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from microspec_kernels.cli.arguments import Parser, listed, positive

from . import library

PARTS = ("head", "vocab", "gather")
ROWS = "1,4,10,16,32,60"
KEY = ("M", "situation", "arm")


def measured(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Lines of figures by part."""
    import torch

    from . import gpu_gather, gpu_head, gpu_vocab

    torch.manual_seed(0)
    rounds = 9 if args.quick else args.rounds
    tables = {}
    if "head" in args.parts:
        rows = [int(m) for m in args.rows.split(",")]
        tables["head"] = gpu_head.measure(rows, rounds, args.only, args.quick)
    if "vocab" in args.parts:
        tables["vocab"] = gpu_vocab.measure(args.quick, rounds, args.only)
    if "gather" in args.parts:
        tables["gather"] = gpu_gather.measure(args.quick, rounds, args.only)
    return {part: table for part, table in tables.items() if table}


def show(tables: dict[str, list[dict[str, Any]]]) -> None:
    from . import report

    for part, table in tables.items():
        sizes = {key: value for key, value in table[0].items() if key in ("V", "D", "K", "k")}
        print(f"\n{report.device()}, {part}, {sizes}\n")
        print(report.table([{k: v for k, v in r.items() if k not in sizes} for r in table]))


def save(tables: dict[str, list[dict[str, Any]]], out: Path) -> None:
    from . import report

    for part, table in tables.items():
        report.write_csv(out / f"{part}.csv", table)


def child(
    args: argparse.Namespace, path: Path, timeout: float | None = None
) -> list[dict[str, Any]]:
    """All lines of figures of one build, measured by another process.

    Raises subprocess.SubprocessError: it failed, or took longer than ``timeout`` seconds.
    """
    command = [sys.executable, "-m", "bench.gpu", "--json", "--library", str(path)]
    command += ["--parts", ",".join(args.parts), "--rows", args.rows, "--only", args.only]
    command += ["--rounds", str(args.rounds), *(["--quick"] if args.quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=timeout)
    tables = json.loads(done.stdout.splitlines()[-1])
    return [line for table in tables.values() for line in table]


def compare(
    runs: dict[Path, list[list[dict[str, Any]]]],
) -> list[dict[str, Any]]:
    """A line an arm: each build's best median over its processes, and the ratio to the first's."""
    best: dict[tuple[Any, ...], dict[Path, float]] = {}
    floors: dict[tuple[Any, ...], float] = {}
    for path, repeats in runs.items():
        for line in (line for lines in repeats for line in lines):
            key = tuple(line.get(name, "") for name in KEY)
            own = best.setdefault(key, {})
            own[path] = min(own.get(path, float("inf")), line["p50_us"])
            floors[key] = line["floor_us"]
    first = next(iter(runs))
    lines = []
    for key, own in best.items():
        line = dict(zip(KEY, key, strict=True)) | {"floor_us": floors[key]}
        for number, path in enumerate(runs, start=1):
            line[f"library {number} us"] = own[path]
        for number, path in enumerate(runs, start=1):
            if path != first:
                line[f"{number} over 1"] = own[path] / own[first]
        lines.append(line)
    return lines


def _rows(text: str) -> str:
    """The text as it is, which goes on to the processes of libraries."""
    listed(positive)(text)
    return text


def parsed() -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, few rounds")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--only", default="", help="arms with this in their name")
    parser.add_argument("--rows", type=_rows, default=ROWS, help=f"of hidden; default {ROWS}")
    parser.add_argument("--rounds", type=positive, default=31)
    parser.add_argument("--out", type=Path, help="folder of the CSV files")
    parser.add_argument("--library", type=Path, action="append", default=[], metavar="SO")
    parser.add_argument("--repeats", type=positive, default=2, help="processes of each library")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()
    args.parts = [part for part in args.parts.split(",") if part]
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    if absent := [str(path) for path in args.library if not path.is_file()]:
        parser.error(f"--library: no file {', '.join(absent)}")
    return args


def main() -> None:
    args = parsed()
    if len(args.library) > 1:
        runs: dict[Path, list[list[dict[str, Any]]]] = {path: [] for path in args.library}
        for _ in range(args.repeats):
            for path, lines in runs.items():
                lines.append(child(args, path))
        from . import report

        print(*(f"library {n}: {path}" for n, path in enumerate(runs, start=1)), sep="\n")
        print(f"\n{report.device()}\n\n{report.table(compare(runs))}")
        return
    if args.library:
        library.use(args.library[0])
    tables = measured(args)
    if args.json:
        print(json.dumps(tables))
        return
    show(tables)
    if args.out:
        save(tables, args.out)


if __name__ == "__main__":
    main()
