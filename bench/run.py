"""Every benchmark, then the plots: one command for what the package saves on this machine.

    python -m bench.run [--quick] [--device cpu|cuda] [--out DIR] [--parts head,plots]

Each part is a process of its own with a limit of time: one that fails or takes too long is
reported and the rest go on; the exit status is then 1. On a GPU the limits add up to less than ten
minutes. CSV files and plots go to bench/results/<device>/, or ``--out``; with ``--quick``, which
says whether everything works rather than how fast, only to the latter.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from microspec_kernels.cli.arguments import Parser

from . import report

ROOT = Path(__file__).resolve().parents[1]
# Seconds; no more than guards against a hang. Quick parts take a few each on a machine left alone.
SLOW, QUICK = 1800.0, 180.0


@dataclass(frozen=True)
class Part:
    module: str
    cuda: float  # limit in seconds
    options: tuple[str, ...] = ()  # of a full run on a GPU


PARTS = {
    "head": Part("bench.head", 270),
    "draft_step": Part("bench.draft_step", 200),
    "vocab": Part("bench.vocab", 20),
    "gather": Part("bench.gather", 25),
    "e2e": Part("bench.e2e", 60, ("--prompts", "8")),
    "plots": Part("bench.plots", 20),
}


@dataclass(frozen=True)
class Outcome:
    part: str
    said: str
    seconds: float
    failed: bool


def limit(part: Part, device: str, quick: bool) -> float:
    return QUICK if quick else part.cuda if device == "cuda" else SLOW


def command(name: str, args: argparse.Namespace) -> list[str]:
    """What measures a part; plots are of what the parts before have written."""
    part = PARTS[name]
    words = [sys.executable, "-m", part.module]
    if name == "plots":
        return [*words, *([str(args.out)] if args.out else [])]
    words += ["--device", args.device, *(["--quick"] if args.quick else [])]
    words += ["--out", str(args.out)] if args.out else []
    words += ["--corpus", str(args.corpus)] if name == "e2e" and args.corpus else []
    return words + list(part.options if args.device == "cuda" and not args.quick else ())


def run_part(
    name: str, words: Sequence[str], seconds: float, environment: dict[str, str]
) -> Outcome:
    """Its output goes where ours goes. After ``seconds`` it is ended, with what it has started."""
    began = time.monotonic()
    process = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(seconds)
        said = "done" if code == 0 else f"FAILED, exit status {code}"
    except subprocess.TimeoutExpired:
        said = f"OUT OF TIME after {seconds:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Outcome(name, said, time.monotonic() - began, said != "done")


def run(args: argparse.Namespace) -> list[Outcome]:
    # What is not to be used is hidden, so that a record of the device names the one that was.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {}
    outcomes = []
    for name in args.parts:
        if name == "plots" and args.quick and not args.out:
            outcomes.append(Outcome(name, "left out: no files without --out", 0, False))
            continue
        if importlib.util.find_spec(PARTS[name].module) is None:
            outcomes.append(Outcome(name, "not in this checkout", 0, args.explicit))
            continue
        print(f"\n== {name} ==\n", flush=True)
        seconds = limit(PARTS[name], args.device, args.quick)
        outcomes.append(run_part(name, command(name, args), seconds, {**os.environ, **hidden}))
    return outcomes


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    present = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=present)
    parser.add_argument("--out", type=Path, help="folder of the CSV files and plots")
    parser.add_argument("--parts", help=f"of {','.join(PARTS)}; default all")
    parser.add_argument("--corpus", type=Path, help="prompts of e2e are from here")
    args = parser.parse_args(arguments)
    args.explicit = args.parts is not None
    args.parts = args.parts.split(",") if args.explicit else list(PARTS)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    if args.device == "cuda" != present:
        parser.error("--device cuda: there is no GPU")
    args.out, args.corpus = (p and p.resolve() for p in (args.out, args.corpus))
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    args = parsed(arguments)
    began = time.monotonic()
    outcomes = run(args)
    print(f"\n== {args.device}, {time.monotonic() - began:.0f} s ==\n")
    print(report.table([{"part": o.part, "outcome": o.said, "s": o.seconds} for o in outcomes]))
    return int(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
