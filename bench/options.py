"""What the benchmarks take on the command line, and what they do with their figures."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from microspec_kernels.cli.arguments import Parser

from . import report

Rows = list[dict[str, Any]]


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = Parser(description=(doc or "").splitlines()[0])
    made.add_argument("--quick", action="store_true", help="a small model, few rounds; no file")
    made.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the GPU where there is one"
    )
    made.add_argument("--out", type=Path, help="folder of the CSV files, also those of --quick")
    return made


def parsed(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with a device that the figures' own record agrees with."""
    args = made.parse_args()
    present = "cuda" if torch.cuda.is_available() else "cpu"
    args.device = args.device or present
    if args.device != present:
        hint = "hide the GPU: CUDA_VISIBLE_DEVICES= in front" if present == "cuda" else "no GPU"
        made.error(f"--device {args.device}: {hint}")
    return args


@contextmanager
def checking(made: argparse.ArgumentParser) -> Iterator[None]:
    """Around what reads files and checks arguments: an error ends the program in one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        made.error(str(error))


def save(args: argparse.Namespace, name: str, rows: Rows) -> None:
    """As NAME in the device's folder, or in ``--out``; a quick run only in the latter."""
    if args.out is not None or not args.quick:
        report.write_csv((args.out or report.folder()) / name, rows)


def run(
    doc: str | None, part: str, on_cpu: Callable[[bool], Rows], on_gpu: Callable[[bool], Rows]
) -> None:
    """A benchmark's main: measure on the device asked for, print, keep. Both are told if quick."""
    args = parsed(parser(doc))
    torch.manual_seed(0)
    rows = (on_gpu if args.device == "cuda" else on_cpu)(args.quick)
    print(f"{report.device()}\n\n{report.table(rows)}")
    save(args, f"{part}.csv", rows)
