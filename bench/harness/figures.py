# SPDX-License-Identifier: Apache-2.0
"""Read figures that benchmarks have written."""

from collections.abc import Sequence
from pathlib import Path

from microspec_kernels.cli.measured import Row, read_csv


class Missing(Exception):
    """The figures are not there; the message says which."""


def rows_of(folder: Path, name: str) -> list[Row]:
    """Read the rows of a file.

    Raises:
        Missing: no such file, or no rows in it.
    """
    if not (folder / name).is_file():
        raise Missing(f"no {name}")
    if not (rows := read_csv(folder / name)):
        raise Missing(f"nothing in {name}")
    return rows


def device_of(folder: Path) -> str:
    """Return the device that a folder's files were measured on."""
    return next(row["device"] for path in sorted(folder.glob("*.csv")) for row in read_csv(path))


def in_order(names: Sequence[str]) -> list[str]:
    """Return each name once, in the order of first appearance."""
    return list(dict.fromkeys(names))
