"""Choices of the CUDA head that only a GPU can judge, each as a build of the library.

    python -m bench.variants build    with nvcc, no GPU: build/variants/NAME.so, for sm_90a alone
    python -m bench.variants run      on the GPU, some minutes

A variant differs from the default by one constant of csrc, which a definition overrides. `run`
times `sparse_head`, cold, with each of them in processes that alternate with the default's
(bench/gpu.py), writes variants.csv with the winner at each M after each process, and goes on where
a variant fails. It adds whether indexed or packed is the better mode, the gather counted,
from the head.csv and gather.csv of bench.run.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from microspec_kernels.cli.arguments import Parser, positive

from . import gpu, library
from .winners import Lines, winners

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ROOT / "build" / "variants"
LIMIT = 120.0  # seconds of a process; no more than a guard against a hang
FEW, MANY = (1, 4), (10, 16, 32, 60)


@dataclass(frozen=True)
class Variant:
    name: str  # of its file, too
    question: str
    rows: tuple[int, ...]  # M at which it differs from the default, at D = 4096
    definition: str = ""  # for nvcc


DEFAULT = Variant("default", "", FEW + MANY)
LAUNCH = "select started by dependent launch, or in the stream's order?"
CORES = "up to which M multiply-adds, from which tensor cores?"
SPLITS = "into how many parts is D split?"
COPIES = "rows into shared memory by bulk copies, or by cp.async?"
THREADS = "how many threads select a row's best?"
VARIANTS = (
    DEFAULT,
    Variant("stream-order", LAUNCH, FEW + MANY, "MICROSPEC_DEPENDENT_LAUNCH=0"),
    Variant("mma-from-1", CORES, FEW, "MICROSPEC_MAX_SIMT_ROWS=0"),
    Variant("simt-to-16", CORES, (10, 16), "MICROSPEC_MAX_SIMT_ROWS=16"),
    Variant("splits-2", SPLITS, (10, 16), "MICROSPEC_MIN_SPLITS=2"),
    Variant("splits-4", SPLITS, (10, 16, 32), "MICROSPEC_MIN_SPLITS=4"),
    Variant("splits-8", SPLITS, (32, 60), "MICROSPEC_MIN_SPLITS=8"),
    Variant("cp-async", COPIES, MANY, "MICROSPEC_BULK_COPIES=0"),
    Variant("select-256", THREADS, FEW + MANY, "MICROSPEC_SELECT_THREADS=256"),
    Variant("select-1024", THREADS, FEW + MANY, "MICROSPEC_SELECT_THREADS=1024"),
)


def build(out: Path, chosen: Sequence[Variant], architecture: str, jobs: int) -> None:
    """``out``/NAME.so of each. One build folder beside it: only what nvcc compiles is made anew."""
    work = out.with_name(f"{out.name}-work")
    out.mkdir(parents=True, exist_ok=True)
    configure = ["cmake", "-S", str(ROOT), "-B", str(work), "-DMICROSPEC_CUDA=ON"]
    configure += [f"-DTORCH_DIR={Path(torch.__file__).parent}"]
    configure += [f"-DMICROSPEC_CUDA_ARCHITECTURES={architecture}"]
    configure += ["-G", "Ninja"] if shutil.which("ninja") else []
    for variant in chosen:
        flags = f"-D{variant.definition}" if variant.definition else ""
        subprocess.run([*configure, f"-DCMAKE_CUDA_FLAGS={flags}"], check=True, stdout=sys.stderr)
        make = ["cmake", "--build", str(work), "--parallel", str(jobs)]
        subprocess.run(make, check=True, stdout=sys.stderr)
        shutil.copy2(work / "libmicrospec.so", out / f"{variant.name}.so")


class Sweep:
    """Lines of figures by variant, a list a process."""

    def __init__(self, libraries: dict[Variant, Path], rounds: int, quick: bool) -> None:
        self.libraries, self.rounds, self.quick = libraries, rounds, quick
        self.lines: dict[str, list[Lines]] = {variant.name: [] for variant in libraries}
        self.failed: list[str] = []

    def measure(self, variant: Variant) -> None:
        """One more process of it, unless it has failed before."""
        if variant.name in self.failed:
            return
        rows = ",".join(map(str, variant.rows))
        args = argparse.Namespace(
            parts=("head",), rows=rows, only="sparse_head", rounds=self.rounds, quick=self.quick
        )
        try:
            lines = gpu.child(args, self.libraries[variant], LIMIT)
        except subprocess.SubprocessError as error:
            print(f"{variant.name}: {error}", file=sys.stderr, flush=True)
            self.failed.append(variant.name)
            return
        self.lines[variant.name].append([line for line in lines if line["situation"] == "cold"])

    def table(self) -> list[dict[str, Any]]:
        questions = {v.name: v.question for v in self.libraries}
        return winners(self.lines, questions)


def found(folder: Path, chosen: Sequence[Variant]) -> dict[Variant, Path]:
    """Libraries by variant, the default first.

    Raises ValueError: the default's is not there, or no other.
    """
    paths = {v: folder / f"{v.name}.so" for v in (DEFAULT, *chosen)}
    there = {variant: path for variant, path in paths.items() if path.is_file()}
    if DEFAULT not in there or len(there) < 2:
        raise ValueError(
            f"--libraries {folder}: expected default.so and others, as build makes them"
        )
    return there


def run(args: argparse.Namespace) -> int:
    sweep = Sweep(found(args.libraries, args.chosen), args.rounds, args.quick)
    library.use(sweep.libraries[DEFAULT])
    from . import report
    from .modes import modes

    out = args.out or report.folder()
    table: list[dict[str, Any]] = []
    for _ in range(args.repeats):
        for variant in sweep.libraries:
            sweep.measure(variant)
            if table := sweep.table():
                report.write_csv(out / "variants.csv", table)
    try:
        table = [*table, *modes(args.figures or out)]
    except ValueError as error:
        print(f"indexed or packed: {error}", file=sys.stderr)
    if table:
        report.write_csv(out / "variants.csv", table)
        print(f"{report.device()}\n\n{report.table(table)}")
    for name in sweep.failed:
        print(f"FAILED: {name}")
    return int(bool(sweep.failed) or not table)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "run"))
    parser.add_argument("--libraries", type=Path, default=LIBRARIES, help="their folder")
    parser.add_argument("--out", type=Path, help="folder of variants.csv; default the device's")
    parser.add_argument("--only", default="", help="variants by name; default all")
    parser.add_argument("--architecture", default="90a-real", help="for nvcc; default 90a-real")
    parser.add_argument("--jobs", type=positive, default=2, help="of the build")
    parser.add_argument("--figures", type=Path, help="folder of bench.run's; default as --out")
    parser.add_argument("--repeats", type=positive, default=2, help="processes of each library")
    parser.add_argument("--rounds", type=positive, default=31)
    parser.add_argument("--quick", action="store_true", help="a small model, few rounds")
    args = parser.parse_args(arguments)
    names = [name for name in args.only.split(",") if name]
    args.chosen = [v for v in VARIANTS if not names or v.name in names]
    if unknown := set(names) - {v.name for v in VARIANTS}:
        parser.error(f"no such variants: {', '.join(sorted(unknown))}")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    args = parsed(arguments)
    if args.what == "build":
        build(args.libraries.resolve(), args.chosen, args.architecture, args.jobs)
        return 0
    try:
        return run(args)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
