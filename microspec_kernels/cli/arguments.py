# SPDX-License-Identifier: Apache-2.0
"""Parse and check arguments before any costly work. An error is one line on stderr, exit code 2."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

DTYPES = ("float32", "float16", "bfloat16")

LARGEST_VOCAB = 2**24
"""Largest vocabulary accepted: sixty times any real one. Its state takes 4 bytes per token."""


class Parser(argparse.ArgumentParser):
    """A parser that accepts no abbreviated options and prints an error as one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Make an argument type: an integer of at least `low` and, if given, at most `high`."""
    limits = f"of at least {low}" if high is None else f"in [{low}, {high}]"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"expected an integer {limits}, got {text}")
        return value

    return read


positive = whole(1)


def listed(read: Callable[[str], int]) -> Callable[[str], list[int]]:
    """Make an argument type: numbers separated by commas, each parsed by `read`."""
    return lambda text: [read(number) for number in text.split(",")]


def real(expected: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """Make an argument type: a finite number that `fits` accepts and `expected` describes."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and fits(value)):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
        return value

    return read


def output(*suffixes: str) -> Callable[[str], Path]:
    """Make an argument type: the path of a writable file in an existing folder.

    Args:
        suffixes: the suffixes that the file may have; without any, all are accepted.
    """

    def problem_of(path: Path) -> str | None:
        folder = path.absolute().parent
        if suffixes and path.suffix not in suffixes:
            return f"expected a file that ends in {', '.join(suffixes)}, got {path}"
        if not folder.is_dir():
            return f"no folder {path.parent}"
        if path.is_dir():
            return f"expected a file, got the folder {path}"
        if not os.access(path if path.exists() else folder, os.W_OK):
            return f"{path} cannot be written"
        return None

    def read(text: str) -> Path:
        path = Path(text)
        try:
            problem = problem_of(path)
        except OSError as error:  # for example, a name that is too long
            problem = str(error)
        if problem is not None:
            raise argparse.ArgumentTypeError(problem)
        return path

    return read


def check_used(args: argparse.Namespace, *rules: tuple[str, bool, str]) -> None:
    """Raise an error for an option that was set but that nothing would use.

    Args:
        args: the parsed arguments.
        rules: for each option: its attribute (None, False or empty if it was not set), whether
            anything uses it, and the text of what it requires.

    Raises:
        ValueError: an option is unused. The message names the first one.
    """
    for name, used, expected in rules:
        value = getattr(args, name)
        if not used and value not in (None, False, []):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option}: expected {expected}")


def usable_device(name: str | None) -> Any:
    """Return the torch.device of that name. The default is the GPU if there is one, else the CPU.

    Raises:
        ValueError: the name is neither the CPU nor a GPU that torch can use here.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    expected = "--device: expected cpu, or cuda where torch has a GPU"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{expected}, got {name}") from error
    index, there = device.index or 0, {"cpu": 1, "cuda": torch.cuda.device_count()}
    if index >= there.get(device.type, 0):
        raise ValueError(f"{expected}, got {name}")
    return torch.empty(0, device=device).device


def check_memory(names: str, size: int, device: Any) -> None:
    """Raise an error if the device's memory cannot hold the tensors.

    Args:
        names: the options that determine the size, for the message.
        size: size of the tensors in bytes.
        device: the torch.device.

    Raises:
        ValueError: the size is larger than the device's memory.
    """
    import torch

    if device.type == "cuda":
        most = torch.cuda.get_device_properties(device).total_memory
    else:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > most:
        expected = f"tensors within the {most / 1e9:.0f} GB of memory"
        raise ValueError(f"{names}: expected {expected}, got {size // 10**9} GB")
