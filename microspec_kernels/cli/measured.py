# SPDX-License-Identifier: Apache-2.0
"""Read figures that benchmarks wrote: CSV files, in one folder per device."""

import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from microspec_kernels._files import reading

Row = dict[str, str]
Field = TypeVar("Field")
Columns = Mapping[str, Callable[[str], object]]


def number(text: str) -> float:
    """Parse a finite number; raise ValueError for any other text."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not finite: {text}")
    return value


HEAD: Columns = {
    **dict.fromkeys(("arm", "situation", "device"), str),
    **dict.fromkeys(("V", "D", "K", "M"), int),
    "p50_us": number,
}
DRAFT: Columns = {
    **dict.fromkeys(("model", "device", "part", "arm"), str),
    "context": int,
    "share": number,
}


def read_csv(path: Path, columns: Columns | None = None) -> list[Row]:
    """Read the rows of a file, and add a column in µs for each column in ms.

    Args:
        path: the CSV file.
        columns: the columns that the file must have, each with the function that parses it.

    Raises:
        OSError: the file does not exist or is not readable.
        ValueError: another kind of file, a missing column, or a field that its column's function
            does not accept. The message names the place.
    """
    with reading(path, "a CSV file"), path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        rows: list[Row] = list(reader)
        heading = list(reader.fieldnames or ())
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(f"{path}:{line}: expected {len(heading)} fields as in its heading")
        for name in [name for name in heading if name.endswith("_ms")]:
            us = name.removesuffix("_ms") + "_us"
            row[us] = str(_field(path, line, row, name, number) * 1e3) if row[name] else ""
    for name, read in (columns or {}).items():
        if name not in (rows[0] if rows else heading):
            raise ValueError(
                f"{path}: expected a column {name}, got {', '.join(heading) or 'none'}"
            )
        for line, row in enumerate(rows, 2):
            _field(path, line, row, name, read)
    return rows


def _field(path: Path, line: int, row: Row, name: str, read: Callable[[str], Field]) -> Field:
    try:
        return read(row[name])
    except ValueError as error:
        expected = "an integer" if read is int else "a number"
        raise ValueError(
            f"{path}:{line}: {name}: expected {expected}, got {row[name]!r}"
        ) from error


def read(results: Path, name: str, columns: Columns) -> list[Row]:
    """Read the rows of the file `name` of all devices. Errors are those of :func:`read_csv`."""
    return [row for path in sorted(results.glob(f"*/{name}")) for row in read_csv(path, columns)]


def draft_shares(results: Path, model: str, device: str) -> dict[str, float]:
    """Read the head's share of a whole draft, by arm, at the shortest measured context."""
    rows = [
        row
        for row in read(results, "draft_step.csv", DRAFT)
        if (row["model"], row["device"], row["part"]) == (model, device, "head")
    ]
    shortest = min((int(row["context"]) for row in rows), default=0)
    return {row["arm"]: float(row["share"]) for row in rows if int(row["context"]) == shortest}
