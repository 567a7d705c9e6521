"""Figures that benchmarks have kept: CSV files in a folder a device."""

import csv
from pathlib import Path

Row = dict[str, str]


def read_csv(path: Path) -> list[Row]:
    """The rows of a file; times in ms become µs."""
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    for row in rows:
        for name in [name for name in row if name.endswith("_ms")]:
            us = name.removesuffix("_ms") + "_us"
            row[us] = str(float(row[name]) * 1e3) if row[name] else ""
    return rows


def read(results: Path, name: str) -> list[Row]:
    """The rows of that file of all devices."""
    return [row for path in sorted(results.glob(f"*/{name}")) for row in read_csv(path)]


def draft_shares(results: Path, model: str, device: str) -> dict[str, float]:
    """The head's share of a whole draft by arm, at the shortest context that was measured."""
    rows = [
        row
        for row in read(results, "draft_step.csv")
        if (row["model"], row["device"], row["part"]) == (model, device, "head")
    ]
    shortest = min((int(row["context"]) for row in rows), default=0)
    return {row["arm"]: float(row["share"]) for row in rows if int(row["context"]) == shortest}
