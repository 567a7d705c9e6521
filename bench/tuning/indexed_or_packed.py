# SPDX-License-Identifier: Apache-2.0
"""Which mode of the head is faster over a whole draft, indexed or packed, gather included?

bench.tuning.kernel_variants answers it at the end of a run, from the files of bench.run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.draft.graph import DraftShape
from bench.harness.figures import Missing, rows_of
from bench.harness.models import DEFAULT
from bench.harness.sizes import CAPACITY, CHANGED, LEVEL
from bench.ops.gather import arm_name

from .pick_fastest import MARGIN

QUESTION = "rows where they lie (indexed), or gathered into a slab (packed)?"
INDEXED, PACKED = "indexed", "packed, gather counted"
# Calls of the head in a draft, by M: the first has one row.
CALLS = {1: 1, LEVEL: DraftShape.depth - 1}
# The type of a slab, by the end of its arm's name in head.csv.
SLABS = {"": torch.bfloat16, " fp8": torch.float8_e4m3fn, " int8": torch.int8}


def compare_modes(folder: Path) -> list[dict[str, Any]]:
    """Add up the head's calls of one draft in each mode, by head.csv and gather.csv of bench.run.

    The gather of 128 new rows runs beside the draft layer, so packed appears twice: with all of
    the gather's time, with which it has to beat indexed by more than MARGIN, and with none of it,
    as a bound. draft_step.csv says how much of it remains in a whole draft. A slab in 8 bits has
    another accuracy and cannot win here.

    Raises:
        ValueError: a file, or a figure in it, is not there.
    """
    try:
        head, gather = rows_of(folder, "head.csv"), rows_of(folder, "gather.csv")
    except Missing as missing:
        raise ValueError(f"{missing} in {folder}: run python -m bench.run first") from missing
    present = {row["arm"] for row in head}
    ways = {INDEXED: ("sparse_head indexed", 0.0)}
    for suffix, dtype in SLABS.items():
        if (arm := f"sparse_head packed{suffix}") in present:
            name = arm_name(CHANGED, dtype)
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
