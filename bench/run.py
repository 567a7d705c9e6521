# SPDX-License-Identifier: Apache-2.0
"""How much does the package save on this machine? One command for the main benchmarks and plots.

    python -m bench.run [--quick] [--device cpu|cuda] [--out DIR] [--parts head,plots]
                        [--pack FILE.tar.gz]

Each part is a process with a time limit. If one fails or takes too long, it is reported, the rest
go on, and the exit status is 1. On a GPU the limits add up to nine minutes. A part is left out if a
package that it needs is missing. CSV files and plots go to bench/results/<device>/, or to
``--out``, which ``--pack`` packs into one file after each part. ``--quick`` shows that everything
works, not how fast it is, so it writes to ``--out`` alone.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from microspec_kernels.cli.arguments import Parser

from .harness import archive, report
from .harness.limited import run_limited

# Seconds, as guards against a hang. A quick part takes a few on an idle machine.
SLOW, QUICK = 1800.0, 180.0


@dataclass(frozen=True)
class Part:
    module: str
    cuda: float  # limit in seconds
    options: tuple[str, ...] = ()  # of a full run on a GPU
    needs: str = ""  # a package that may be missing


PARTS = {
    "head": Part("bench.ops.head", 240),
    "draft_step": Part("bench.draft.step", 175),
    "vocab": Part("bench.ops.vocab", 20),
    "gather": Part("bench.ops.gather", 25),
    "pair": Part("bench.decoding.pair", 60, ("--prompts", "8"), "mistral_common"),
    "plots": Part("bench.plots", 20, needs="matplotlib"),
}


@dataclass(frozen=True)
class Outcome:
    part: str
    text: str
    seconds: float
    failed: bool


def limit(part: Part, device: str, quick: bool) -> float:
    return QUICK if quick else part.cuda if device == "cuda" else SLOW


def command(name: str, args: argparse.Namespace) -> list[str]:
    """Return the command of a part. The plots are of what the parts before have written."""
    part = PARTS[name]
    words = [sys.executable, "-m", part.module]
    if name == "plots":
        return [*words, *([str(args.out)] if args.out else [])]
    words += ["--device", args.device, *(["--quick"] if args.quick else [])]
    words += ["--out", str(args.out)] if args.out else []
    words += ["--corpus", str(args.corpus)] if name == "pair" and args.corpus else []
    return words + list(part.options if args.device == "cuda" and not args.quick else ())


def run_part(
    name: str, words: Sequence[str], seconds: float, environment: dict[str, str]
) -> Outcome:
    """Run a part with our output streams."""
    ended = run_limited(words, seconds, environment=environment)
    text = "done" if ended.code == 0 else f"FAILED, exit status {ended.code}"
    if ended.code is None:
        text = f"OUT OF TIME after {seconds:.0f} s"
    return Outcome(name, text, ended.seconds, text != "done")


def run(args: argparse.Namespace) -> list[Outcome]:
    # Hide an unused GPU, so that the files name the device that was measured.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {}
    outcomes = []
    for name in args.parts:
        if name == "plots" and args.quick and not args.out:
            outcomes.append(Outcome(name, "left out: no files without --out", 0, False))
            continue
        if importlib.util.find_spec(PARTS[name].module) is None:
            outcomes.append(Outcome(name, "not in this checkout", 0, args.explicit))
            continue
        if (needed := PARTS[name].needs) and importlib.util.find_spec(needed) is None:
            outcomes.append(Outcome(name, f"left out: no {needed}", 0, args.explicit))
            continue
        print(f"\n== {name} ==\n", flush=True)
        seconds = limit(PARTS[name], args.device, args.quick)
        outcomes.append(run_part(name, command(name, args), seconds, {**os.environ, **hidden}))
        if args.pack and args.out.is_dir():
            archive.pack(args.out, args.pack)
    return outcomes


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    present = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=present)
    parser.add_argument("--out", type=Path, help="folder of the CSV files and plots")
    parser.add_argument("--pack", type=Path, help="a .tar.gz for all files of --out")
    parser.add_argument("--parts", help=f"some of {','.join(PARTS)}; default all")
    parser.add_argument(
        "--corpus", type=Path, help="corpus.jsonl.xz for the prompts of the part pair"
    )
    args = parser.parse_args(arguments)
    args.explicit = args.parts is not None
    args.parts = args.parts.split(",") if args.explicit else list(PARTS)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    if args.device == "cuda" != present:
        parser.error("--device cuda: there is no GPU")
    paths = (args.out, args.corpus, args.pack)
    args.out, args.corpus, args.pack = (path and path.resolve() for path in paths)
    if args.pack and (not args.out or args.out in args.pack.parents):
        parser.error("--pack: expected --out, and a file outside of that folder")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    args = parsed(arguments)
    began = time.monotonic()
    outcomes = run(args)
    print(f"\n== {args.device}, {time.monotonic() - began:.0f} s ==\n")
    print(report.table([{"part": o.part, "outcome": o.text, "s": o.seconds} for o in outcomes]))
    return int(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
