# SPDX-License-Identifier: Apache-2.0
"""Read the options that all benchmarks have, and run a benchmark that has no others."""

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
    """Make a parser with --quick, --device and --out; the first line of `doc` describes it."""
    options = Parser(description=(doc or "").splitlines()[0])
    options.add_argument("--quick", action="store_true", help="a small model, few rounds; no file")
    options.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the GPU if there is one"
    )
    options.add_argument("--out", type=Path, help="folder of the CSV files, also those of --quick")
    return options


def parsed(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments, and refuse a device that the figures would not be recorded under."""
    args = options.parse_args()
    present = "cuda" if torch.cuda.is_available() else "cpu"
    args.device = args.device or present
    if args.device != present:
        hint = "hide the GPU: CUDA_VISIBLE_DEVICES= in front" if present == "cuda" else "no GPU"
        options.error(f"--device {args.device}: {hint}")
    return args


@contextmanager
def checking(options: argparse.ArgumentParser) -> Iterator[None]:
    """End the program in one line if the code inside refuses a file or an argument."""
    try:
        yield
    except (OSError, ValueError) as error:
        options.error(str(error))


def save(args: argparse.Namespace, name: str, rows: Rows) -> None:
    """Write `name` to --out or else to the device's folder; a quick run writes to --out alone."""
    if args.out is not None or not args.quick:
        report.write_csv((args.out or report.folder()) / name, rows)


def run(
    doc: str | None, part: str, on_cpu: Callable[[bool], Rows], on_gpu: Callable[[bool], Rows]
) -> None:
    """Measure on the chosen device, print the figures and write them to ``part``.csv.

    Args:
        on_cpu, on_gpu: measure, given whether the run is a quick one.
    """
    args = parsed(parser(doc))
    torch.manual_seed(0)
    rows = (on_gpu if args.device == "cuda" else on_cpu)(args.quick)
    print(f"{report.device()}\n\n{report.table(rows)}")
    save(args, f"{part}.csv", rows)
