"""Read and check arguments before anything costly: a mistake is one line on stderr, exit code 2."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

DTYPES = ("float32", "float16", "bfloat16")

LARGEST_VOCAB = 2**24
"""Tokens that a vocabulary may have: sixty times as many as any has. Its state is 4 bytes each."""


class Parser(argparse.ArgumentParser):
    """Take options by their whole names alone, and tell a mistake in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Make an argument's type: an integer of at least `low` and at most `high`."""
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
    """Make an argument's type: numbers separated by commas, each as `read` takes it."""
    return lambda text: [read(number) for number in text.split(",")]


def real(expected: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """Make an argument's type: a finite number that `fits`, which `expected` describes."""

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
    """Make an argument's type: the path of a file that can be written, in a folder that exists.

    Args:
        suffixes: those that the file may have; none: any.
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
        except OSError as error:  # a name that is too long, say
            problem = str(error)
        if problem is not None:
            raise argparse.ArgumentTypeError(problem)
        return path

    return read


def check_used(args: argparse.Namespace, *rules: tuple[str, bool, str]) -> None:
    """Refuse options that were given and that nothing would use.

    Args:
        rules: an option's attribute (None, False or empty where it was not given), whether anything
            uses it, and what it would take.

    Raises:
        ValueError: names the first of them.
    """
    for name, used, expected in rules:
        given = getattr(args, name)
        if not used and given not in (None, False, []):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option}: expected {expected}")


def usable_device(name: str | None) -> Any:
    """The torch.device of that name; by default the GPU where there is one.

    Raises:
        ValueError: neither the CPU nor a GPU that torch can use here.
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
    """Refuse sizes whose tensors the device's memory cannot hold.

    Args:
        names: the options that decide it.
        size: bytes.

    Raises:
        ValueError: more than the device has.
    """
    import torch

    if device.type == "cuda":
        most = torch.cuda.get_device_properties(device).total_memory
    else:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > most:
        expected = f"tensors within the {most / 1e9:.0f} GB of memory"
        raise ValueError(f"{names}: expected {expected}, got {size // 10**9} GB")
