"""Which of several ways to do the same was the fastest, from lines of figures."""

from collections.abc import Mapping, Sequence
from typing import Any

Lines = list[dict[str, Any]]
KEY = ("M", "situation", "arm")
# Less than this apart two builds are as good as each other, and the default stays.
MARGIN = 0.02


def winners(
    runs: Mapping[str, Sequence[Lines]], questions: Mapping[str, str], default: str = "default"
) -> list[dict[str, Any]]:
    """A line for each variant at each M and arm that it was measured at.

    ``runs``: lines of figures of each variant's processes, whose best median counts. One wins over
    the default if it is faster by more than MARGIN and by more than the default's own processes
    differ; ``winner`` is the fastest of those, else the default.
    """
    medians: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    floors: dict[tuple[Any, ...], float] = {}
    for name, processes in runs.items():
        for line in (line for lines in processes for line in lines):
            key = tuple(line[column] for column in KEY)
            medians.setdefault(key, {}).setdefault(name, []).append(line["p50_us"])
            floors[key] = line["floor_us"]
    table = []
    for key, own in medians.items():
        if default not in own:
            continue
        best = {name: min(times) for name, times in own.items()}
        spread = max(own[default]) / best[default] - 1
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
