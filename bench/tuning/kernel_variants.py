# SPDX-License-Identifier: Apache-2.0
"""Which variant of the CUDA head is the fastest? Each variant is a build of the library.

    python -m bench.tuning.kernel_variants build   needs nvcc, no GPU: build/variants/NAME.so, for
                                                   sm_90a alone
    python -m bench.tuning.kernel_variants run     needs the GPU, for some minutes

A variant differs from the default by one constant of csrc, which a definition overrides, or by one
variable of the environment, over the default's build. `run`
times `sparse_head`, cold, with each variant, in processes that alternate with the default's
(bench/ops/compare_builds.py). After each process it writes variants.csv with the winner at each M,
and it goes on if a variant fails. At the end it adds which mode is faster, indexed or packed with
its gather, by the head.csv and gather.csv of bench.run.
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

from bench.harness import report
from bench.harness.sizes import ROUNDS
from bench.ops import compare_builds, head
from microspec_kernels.cli.arguments import Parser, positive

from .indexed_or_packed import compare_modes
from .pick_fastest import Lines, pick_fastest

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ROOT / "build" / "variants"
LIMIT = 120.0  # seconds of a process, as a guard against a hang
FEW, MANY = head.ROWS[:2], head.ROWS[2:]  # up to 4 rows, the kernel uses multiply-adds


@dataclass(frozen=True)
class Variant:
    name: str  # also that of its file
    question: str
    num_tokens: tuple[int, ...]  # M at which it differs from the default, at D = 4096
    definition: str = ""  # for nvcc
    settings: tuple[tuple[str, str], ...] = ()  # environment variables of the process

    @property
    def built(self) -> bool:
        """Whether it has a library of its own."""
        return not self.settings


DEFAULT = Variant("default", "", FEW + MANY)
LAUNCH = "select started by dependent launch, or in the stream's order?"
CORES = "up to which M multiply-adds, from which tensor cores?"
SPLITS = "into how many parts is D split?"
COPIES = "rows into shared memory by bulk copies, or by cp.async?"
THREADS = "how many threads select a row's best?"
VARIANTS = (
    DEFAULT,
    Variant("stream-order", LAUNCH, FEW + MANY, settings=(("MICROSPEC_DEPENDENT_LAUNCH", "0"),)),
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
    """Build ``out``/NAME.so of each, in one folder beside it, so that only CUDA is recompiled."""
    work = out.with_name(f"{out.name}-work")
    out.mkdir(parents=True, exist_ok=True)
    configure = ["cmake", "-S", str(ROOT), "-B", str(work), "-DMICROSPEC_CUDA=ON"]
    configure += [f"-DTORCH_DIR={Path(torch.__file__).parent}"]
    configure += [f"-DMICROSPEC_CUDA_ARCHITECTURES={architecture}"]
    configure += ["-G", "Ninja"] if shutil.which("ninja") else []
    for variant in filter(lambda v: v.built, chosen):
        flags = f"-D{variant.definition}" if variant.definition else ""
        subprocess.run([*configure, f"-DCMAKE_CUDA_FLAGS={flags}"], check=True, stdout=sys.stderr)
        make = ["cmake", "--build", str(work), "--parallel", str(jobs)]
        subprocess.run(make, check=True, stdout=sys.stderr)
        shutil.copy2(work / "libmicrospec.so", out / f"{variant.name}.so")


class Sweep:
    """Lines of figures by variant, one list for each process."""

    def __init__(self, libraries: dict[Variant, Path], rounds: int, quick: bool) -> None:
        self.libraries, self.rounds, self.quick = libraries, rounds, quick
        self.lines: dict[str, list[Lines]] = {variant.name: [] for variant in libraries}
        self.failed: list[str] = []

    def measure(self, variant: Variant) -> None:
        """Run one more process of a variant, unless one has failed before."""
        if variant.name in self.failed:
            return
        num_tokens = ",".join(map(str, variant.num_tokens))
        args = argparse.Namespace(
            parts=("head",),
            num_tokens=num_tokens,
            only="sparse_head",
            rounds=self.rounds,
            quick=self.quick,
        )
        try:
            library, settings = self.libraries[variant], dict(variant.settings)
            lines = compare_builds.measure_build(args, library, LIMIT, settings)
        except subprocess.SubprocessError as error:
            print(f"{variant.name}: {error}", file=sys.stderr, flush=True)
            self.failed.append(variant.name)
            return
        self.lines[variant.name].append([line for line in lines if line["situation"] == "cold"])

    def table(self) -> list[dict[str, Any]]:
        questions = {v.name: v.question for v in self.libraries}
        return pick_fastest(self.lines, questions)


def find_libraries(folder: Path, chosen: Sequence[Variant]) -> dict[Variant, Path]:
    """Return the libraries by variant, the default first.

    Raises:
        ValueError: the default's is not there, or no other.
    """
    paths = {v: folder / f"{v.name if v.built else DEFAULT.name}.so" for v in (DEFAULT, *chosen)}
    there = {variant: path for variant, path in paths.items() if path.is_file()}
    if DEFAULT not in there or len(there) < 2:
        raise ValueError(
            f"--libraries {folder}: expected default.so and others, as build makes them"
        )
    return there


def run(args: argparse.Namespace) -> int:
    sweep = Sweep(find_libraries(args.libraries, args.chosen), args.rounds, args.quick)
    out = args.out or report.folder()
    table: list[dict[str, Any]] = []
    for _ in range(args.repeats):
        for variant in sweep.libraries:
            sweep.measure(variant)
            if table := sweep.table():
                report.write_csv(out / "variants.csv", table)
    try:
        table = [*table, *compare_modes(args.figures or out)]
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
    parser.add_argument("--libraries", type=Path, default=LIBRARIES, help="folder of the builds")
    parser.add_argument(
        "--out", type=Path, help="folder of variants.csv; default that of the device"
    )
    parser.add_argument("--only", default="", help="names of variants; default all")
    parser.add_argument(
        "--architecture", default="90a-real", help="nvcc's target; default 90a-real"
    )
    parser.add_argument("--jobs", type=positive, default=2, help="parallel jobs of the build")
    parser.add_argument(
        "--figures", type=Path, help="folder of bench.run's CSV files; default that of --out"
    )
    parser.add_argument(
        "--repeats", type=positive, default=2, help="number of processes per library"
    )
    parser.add_argument("--rounds", type=positive, default=ROUNDS)
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
