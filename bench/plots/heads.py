# SPDX-License-Identifier: Apache-2.0
"""Plot head.csv: time against bytes, and speed-up by model."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib import pyplot
from matplotlib.figure import Figure

from bench.harness import models
from bench.harness.figures import Missing, in_order, rows_of
from bench.harness.sizes import CAPACITY, LEVEL
from microspec_kernels.cli.advise import Point, points
from microspec_kernels.cli.measured import Row

ROWS = (1, LEVEL, 60)
HEIGHT = 3.2  # of a panel, in inches
KIND_COLOURS = {
    "sparse_head": "tab:blue",
    "dense": "tab:red",
    "static": "tab:orange",
    "NanoSpec": "tab:green",
}
OTHER_COLOURS = ("tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
MARKERS = "os^Dv<>P*X"


def model_name(row: Row) -> str:
    """Return the model that the row names, or the first one with a head of that shape."""
    shape = int(row["V"]), int(row["D"])
    fitting = (m.name for m in models.MODELS.values() if (m.vocab_size, m.dim) == shape)
    return row.get("model") or next(fitting, f"{shape[0]} rows of {shape[1]}")


def styles(arms: Sequence[str]) -> dict[str, dict[str, str]]:
    """Choose a colour by the kind of head, and a marker by arm."""
    others = iter(OTHER_COLOURS * len(arms))
    result = {}
    for index, arm in enumerate(arms):
        kind = next((kind for kind in KIND_COLOURS if arm.startswith(kind)), None)
        colour = KIND_COLOURS[kind] if kind else next(others)
        result[arm] = {"color": colour, "marker": MARKERS[index % len(MARKERS)]}
    return result


def bytes_read(row: Row) -> float:
    """Return the bytes column, or else the bytes of the rows that the arm works on."""
    if row.get("bytes"):
        return float(row["bytes"])
    return int(row["V"] if row["arm"].startswith("dense") else row["K"]) * int(row["D"]) * 2.0


def against_bytes(folder: Path) -> Figure:
    """Draw the time of each arm against the bytes it reads, one panel for each M."""
    rows = rows_of(folder, "head.csv")
    situation, _ = points(rows)
    rows = [row for row in rows if row["situation"] == situation]
    present = sorted({int(row["M"]) for row in rows})
    chosen = [m for m in ROWS if m in present] or present[:3]
    look = styles(in_order([row["arm"] for row in rows]))
    speed = median(float(row.get("copy_GBps") or row["read_GBps"]) for row in rows)
    figure, panels = pyplot.subplots(
        1,
        len(chosen),
        figsize=(max(7, 1 + 3 * len(chosen)), HEIGHT + 1),
        sharey=True,
        squeeze=False,
    )
    for axes, m in zip(panels[0], chosen, strict=True):
        for arm, style in look.items():
            of_arm = [row for row in rows if row["arm"] == arm and int(row["M"]) == m]
            x = [bytes_read(row) / 1e6 for row in of_arm]
            y = [float(row["p50_us"]) for row in of_arm]
            axes.plot(x, y, linestyle="", label=arm, markersize=5, **style)
        ends = [edge([bytes_read(row) / 1e6 for row in rows]) for edge in (min, max)]
        floor = [megabytes * 1e3 / speed for megabytes in ends]
        axes.plot(ends, floor, color="black", linewidth=1, label=f"floor, {speed:.4g} GB/s")
        axes.set(xscale="log", yscale="log", xlabel="MB that a call reads", title=f"M = {m}")
    panels[0][0].set_ylabel(f"µs a call, median, {situation}")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def speedup(folder: Path) -> Figure:
    """Draw how many times faster the sparse head is than the dense one, by model and M."""
    rows = rows_of(folder, "head.csv")
    all_points = {}
    for name in in_order([model_name(row) for row in rows]):
        situation, all_points[name] = points([row for row in rows if model_name(row) == name])
    sizes = {point.capacity for found in all_points.values() for point in found}
    if not sizes:
        raise Missing("head.csv has no dense head beside a sparse one")
    capacity = CAPACITY if CAPACITY in sizes else max(sizes)
    by_model = {
        name: {point.num_tokens: point for point in found if point.capacity == capacity}
        for name, found in all_points.items()
    }
    present = sorted({m for by_rows in by_model.values() for m in by_rows})
    chosen = [m for m in ROWS if m in present] or present[:3]
    figure, axes = pyplot.subplots(figsize=(4 + 1.2 * len(by_model), HEIGHT + 0.5))
    width = 0.8 / len(chosen)
    for index, m in enumerate(chosen):
        places = [place for place, by_rows in enumerate(by_model.values()) if m in by_rows]
        ratios = [ratio(by_rows[m]) for by_rows in by_model.values() if m in by_rows]
        offset = (index - (len(chosen) - 1) / 2) * width
        bars = axes.bar([place + offset for place in places], ratios, width, label=f"M = {m}")
        axes.bar_label(bars, fmt="%.3g", fontsize=7)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(by_model)), list(by_model))
    axes.set(
        title=f"dense head over sparse head, K = {capacity}, {situation}", ylabel="times faster"
    )
    axes.margins(y=0.1)
    figure.legend(loc="outside lower center", ncols=len(chosen))
    return figure


def ratio(point: Point) -> float:
    return point.dense / point.sparse
