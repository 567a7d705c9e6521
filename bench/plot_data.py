"""What is drawn: rows of CSV files, or the word that there are none."""

from collections.abc import Sequence
from pathlib import Path

from microspec_kernels.cli.measured import Row, read_csv


class Missing(Exception):
    """No figures for this plot; says which."""


def rows_of(folder: Path, name: str) -> list[Row]:
    if not (folder / name).is_file():
        raise Missing(f"no {name}")
    if not (rows := read_csv(folder / name)):
        raise Missing(f"nothing in {name}")
    return rows


def device_of(folder: Path) -> str:
    return next(row["device"] for path in sorted(folder.glob("*.csv")) for row in read_csv(path))


def in_order(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
