# SPDX-License-Identifier: Apache-2.0
"""Plot whole drafts: time by part, and when each part ran."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness.figures import Missing, in_order, rows_of
from microspec_kernels.cli.measured import Row, read_csv

DRAFT, TIMELINE = "draft_step.csv", "draft_timeline.csv"
WHOLE, ALONE, REST = "draft", "gather, alone", "rest"  # beside the parts of a draft
MAIN_ARMS = ("dense", "static 32k", "NanoSpec", "indexed", "packed")
COLOURS = {"layer": "C0", "head": "C1", "tree": "C2", "gather": "C3", "vocabulary": "C4"}
OTHER = "lightgrey"
LANE = {"draft": "", "side": ", side stream"}
MILLISECONDS = 1e4  # µs; an axis that reaches them is in ms

Bars = dict[str, dict[str, float]]  # arm → part → time, the whole among them


def stacked(axes: Axes, bars: Bars, parts: Sequence[str]) -> None:
    """Draw one bar for each arm, the first on top, with the time of the whole draft at its end.

    Differences of medians may add up to more than the whole. If they add up to less, the rest is
    drawn as a part.
    """
    left = dict.fromkeys(bars, 0.0)
    for part in [*parts, REST]:
        times = [parts_of_arm.get(part, 0.0) for parts_of_arm in bars.values()]
        if part == REST:
            rest = zip(bars.values(), left.values(), strict=True)
            times = [max(0.0, parts_of_arm[WHOLE] - drawn) for parts_of_arm, drawn in rest]
        axes.barh(
            list(bars), times, left=list(left.values()), label=part, color=COLOURS.get(part, OTHER)
        )
        left = {arm: left[arm] + time for arm, time in zip(bars, times, strict=True)}
    for place, (arm, times_of_arm) in enumerate(bars.items()):
        axes.text(left[arm], place, f" {times_of_arm[WHOLE]:.4g}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(left.values()))


def readable(longest: float) -> tuple[str, float]:
    """Return the unit for times up to ``longest`` µs, and how many µs it has."""
    return ("ms", 1e3) if longest >= MILLISECONDS else ("µs", 1.0)


def draft_bars(rows: list[Row]) -> tuple[dict[str, Bars], str]:
    """Return bars by title, and their unit. A part that adds nothing measurable counts 0."""
    panels: dict[str, Bars] = {}
    unit, size = readable(max(float(row["p50_us"]) for row in rows))
    for row in rows:
        if row["part"] != ALONE:
            bars = panels.setdefault(f"{row['model']}, context {row['context']}", {})
            bars.setdefault(row["arm"], {})[row["part"]] = max(0.0, float(row["p50_us"])) / size
    return panels, f"{unit} a draft, median"


def pair_bars(folder: Path) -> Bars:
    """Return a greedy draft step of the demonstration pair, of the largest measured tree."""
    files = [read_csv(path) for path in sorted(folder.glob("e2e-*.csv"))]
    files = [rows for rows in files if rows and not float(rows[0].get("temperature") or 0)]
    if not files:
        raise Missing("neither draft_step.csv nor e2e-*.csv")
    rows = max(files, key=lambda rows: int(rows[0]["tree_size"]))
    bars = {}
    for row in rows:
        if row["head_ms_per_draft_step"]:
            head = float(row["head_ms_per_draft_step"])
            whole = float(row["draft_ms_per_draft_step"])
            bars[row["head"]] = {"head": head, WHOLE: whole}
    return bars


def draft(folder: Path) -> Figure:
    """Draw a panel for each model and context, or the pair's if no whole draft was measured."""
    if (folder / DRAFT).is_file():
        panels, unit = draft_bars(rows_of(folder, DRAFT))
    else:
        panels, unit = {"demonstration pair": pair_bars(folder)}, "ms a draft step"
    arms = [arm for bars in panels.values() for arm in bars.values()]
    parts = in_order([part for arm in arms for part in arm if part != WHOLE])
    heights = [0.6 + 0.3 * len(bars) for bars in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(7.5, 1 + sum(heights)), height_ratios=heights, squeeze=False
    )
    for panel, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        stacked(panel, bars, parts)
        panel.set_title(title)
    axes[-1, 0].set_xlabel(unit)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def timeline(folder: Path) -> Figure:
    """Draw one draft of each main arm, of the first measured model and context."""
    rows = rows_of(folder, TIMELINE)
    first = rows[0]
    rows = [row for row in rows if all(row[name] == first[name] for name in ("model", "context"))]
    arms = in_order([row["arm"] for row in rows])
    lanes = in_order([row["arm"] + LANE[row["stream"]] for row in rows if row["arm"] in MAIN_ARMS])
    if not lanes:
        raise Missing(f"{TIMELINE} has other arms alone: {', '.join(arms)}")
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.4 * len(lanes)))
    unit, size = readable(max(float(row["end_us"]) for row in rows))
    for part in in_order([row["part"] for row in rows]):
        colour = COLOURS.get(part, OTHER)
        for row in rows:
            if row["part"] == part and row["arm"] in MAIN_ARMS:
                start, end = float(row["start_us"]) / size, float(row["end_us"]) / size
                place = lanes.index(row["arm"] + LANE[row["stream"]])
                axes.broken_barh([(start, end - start)], (place - 0.4, 0.8), color=colour)
        axes.plot([], [], color=colour, linewidth=6, label=part)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.invert_yaxis()
    title = f"one draft, {first['model']}, context {first['context']}"
    axes.set(xlabel=f"{unit} since its start", title=title)
    figure.legend(loc="outside lower center", ncols=6)
    return figure
