"""What several subcommands need: tables, ranks of frequent tokens, argument types, data types."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

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
