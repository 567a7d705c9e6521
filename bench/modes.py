"""Indexed or packed: which mode of the head is faster over a draft, the gather counted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .draft import Shape
from .draft_heads import Observed
from .head import CAPACITY
from .head_arms import K_BEST
from .models import DEFAULT
from .plot_data import Missing, rows_of
from .winners import MARGIN

QUESTION = "rows where they lie (indexed), or gathered into a slab (packed)?"
INDEXED, PACKED = "indexed", "packed, gather counted"
# Calls of the head in a draft by M, the first with one row.
CALLS = {1: 1, K_BEST: Shape.depth - 1}
SLABS = {"": "bf16", " fp8": "fp8", " int8": "int8"}  # as the arms of head and gather are named


def modes(folder: Path) -> list[dict[str, Any]]:
    """The head's calls of one draft in either mode, by head.csv and gather.csv of bench.run.

    The gather of 128 new rows runs beside the draft layer, so packed stands here twice: with all of
    its time, which has to win over indexed by more than MARGIN, and as a bound with none. What is
    left of it in a whole draft says draft_step.csv. A slab in 8 bits is another accuracy, and no
    winner here.

    Raises:
        ValueError: a file, or a figure in it, is not there.
    """
    try:
        head, gather = rows_of(folder, "head.csv"), rows_of(folder, "gather.csv")
    except Missing as missing:
        raise ValueError(f"{missing} in {folder}: run python -m bench.run first") from missing
    present = {row["arm"] for row in head}
    ways = {INDEXED: ("sparse_head indexed", 0.0)}
    for suffix, label in SLABS.items():
        if (arm := f"sparse_head packed{suffix}") in present:
            name = f"gather_rows_ of {Observed.new} rows, bf16 to {label}"
            ways[f"packed{suffix}, gather counted"] = (arm, _figure(gather, "p50_us", arm=name))
            ways[f"packed{suffix}, gather hidden"] = (arm, 0.0)
    return [line for situation in ("cold", "in situ") for line in _lines(head, ways, situation)]


def _lines(
    head: Sequence[Mapping[str, str]], ways: Mapping[str, tuple[str, float]], situation: str
) -> list[dict[str, Any]]:
    def draft(arm: str, column: str) -> float:
        where = {"model": DEFAULT, "K": CAPACITY, "situation": situation, "arm": arm}
        return sum(count * _figure(head, column, M=m, **where) for m, count in CALLS.items())

    times = {way: draft(arm, "p50_us") + cost for way, (arm, cost) in ways.items()}
    over = {way: time / times[INDEXED] for way, time in times.items()}
    winner = PACKED if over.get(PACKED, 1.0) < 1 - MARGIN else INDEXED
    return [
        {
            "question": QUESTION,
            "variant": way,
            "M": "a draft",
            "situation": situation,
            "arm": arm,
            "p50_us": times[way],
            "floor_us": draft(arm, "floor_us"),
            "over_default": over[way],
            "winner": "yes" if way == winner else "",
        }
        for way, (arm, _) in ways.items()
    ]


def _figure(rows: Sequence[Mapping[str, str]], column: str, **wanted: Any) -> float:
    for row in rows:
        if all(row[name] == str(value) for name, value in wanted.items()):
            return float(row[column])
    raise ValueError(f"no figure of {wanted}")
