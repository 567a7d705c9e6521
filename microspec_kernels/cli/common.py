"""What several subcommands need: tables, ranks of frequent tokens, argument types, data types."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microspec_kernels._extras import require

DTYPES = ("float32", "float16", "bfloat16")


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same keys under a heading: text to the left, numbers to the right."""
    heading = list(rows[0])
    cells = [heading, *([_text(row[key]) for key in heading] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = [isinstance(rows[0][key], str) for key in heading]
    lines = [
        "  ".join(
            cell.ljust(width) if is_text else cell.rjust(width)
            for cell, width, is_text in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join(lines)


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)


def positive(text: str) -> int:
    """An argument of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def frequency_rank(path: Path) -> list[int]:
    """Token ids, most frequent first, of an .npy file.

    Raises:
        OSError: no such file, or not readable.
        ValueError: not a list of ids.
    """
    ranked: list[int] = integers(path, 1).tolist()
    return ranked


def integers(path: Path, dimensions: int) -> Any:
    """The integers of an .npy file, a numpy array of so many dimensions.

    Raises:
        OSError: no such file, or not readable.
        ValueError: something else.
    """
    np = require("numpy", "replay")
    expected = f"{path}: expected an .npy of integers in {dimensions} dimension(s)"
    try:
        array = np.load(path)
    except ValueError as error:
        raise ValueError(expected) from error
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != dimensions
        or array.dtype.kind not in "iu"
    ):
        raise ValueError(expected)
    return array


def usable_device(name: str | None) -> Any:
    """The torch.device of that name; by default the GPU where there is one.

    Raises:
        ValueError: torch does not know it or cannot use it here.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device: {name} cannot be used here") from error
