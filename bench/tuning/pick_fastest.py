# SPDX-License-Identifier: Apache-2.0
"""Pick the fastest of several ways to do the same, from lines of figures."""

from collections.abc import Mapping, Sequence
from typing import Any

Lines = list[dict[str, Any]]
KEY = ("M", "situation", "arm")
# Two builds closer than this count as equal, and the default stays.
MARGIN = 0.02


def pick_fastest(
    runs: Mapping[str, Sequence[Lines]], questions: Mapping[str, str], default: str = "default"
) -> list[dict[str, Any]]:
    """Return a line for each variant at each M and arm that it was measured at.

    A variant wins if it is faster than the default by more than MARGIN and by more than the
    default's own processes differ. The fastest such variant is the winner, else the default.

    Args:
        runs: for each variant, lines of figures of each of its processes; its best median counts.
        questions: the question that each variant answers.
    """
    medians: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    floors: dict[tuple[Any, ...], float] = {}
    for name, processes in runs.items():
        for line in (line for lines in processes for line in lines):
            key = tuple(line[column] for column in KEY)
            medians.setdefault(key, {}).setdefault(name, []).append(line["p50_us"])
            floors[key] = line["floor_us"]
    table = []
    for key, by_variant in medians.items():
        if default not in by_variant:
            continue
        best = {name: min(times) for name, times in by_variant.items()}
        spread = max(by_variant[default]) / best[default] - 1
        fastest = min(best, key=best.__getitem__)
        wins = best[fastest] < best[default] * (1 - max(MARGIN, spread))
        winner = fastest if wins else default
        for name, p50 in best.items():
            table.append(
                {
                    "question": questions.get(name, ""),
                    "variant": name,
                    **dict(zip(KEY, key, strict=True)),
                    "p50_us": p50,
                    "floor_us": floors[key],
                    "over_default": p50 / best[default],
                    "winner": "yes" if name == winner else "",
                }
            )
    return table
