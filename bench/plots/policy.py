# SPDX-License-Identifier: Apache-2.0
"""Plot policy.csv, which bench.policy.traces writes.

    python -m bench.plots.policy [FOLDER]

capacity.svg    coverage against capacity, one panel for each trace
policies.svg    coverage of every policy at one capacity: one mark for each trace, and their mean
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure

from bench.harness import options, report
from bench.harness.figures import Missing, in_order, rows_of
from bench.harness.sizes import CAPACITY
from microspec_kernels.cli.arguments import Parser
from microspec_kernels.cli.measured import Row

FIXED = {"svg.hashsalt": "microspec", "svg.fonttype": "none", "font.size": 8}
CURVES = {
    ("filled", "public"): "public list",
    ("filled", "own half"): "list of own requests",
    ("filled, kept", "public"): "public list, kept between requests",
}
COLUMNS = 4
MARKERS = "os^Dv<>P*X"


def draw(folder: Path) -> None:
    """Draw both plots into the folder of policy.csv."""
    rows = rows_of(folder, "policy.csv")
    with matplotlib.rc_context(FIXED):
        for name, plot in (("capacity", capacity), ("policies", policies)):
            figure = plot(rows)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            pyplot.close(figure)


def capacity(rows: list[Row]) -> Figure:
    """Draw coverage against capacity, one panel for each trace."""
    traces = in_order([row["trace"] for row in rows])
    columns = min(COLUMNS, len(traces))
    lines = -(-len(traces) // columns)
    figure, panels = pyplot.subplots(
        lines,
        columns,
        figsize=(2.4 * columns, 2 * lines + 0.8),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes in panels.flat[len(traces) :]:
        axes.set_visible(False)
    for axes, trace in zip(panels.flat, traces, strict=False):
        of_trace = [row for row in rows if row["trace"] == trace]
        for curve, label in CURVES.items():
            points = [row for row in of_trace if (row["arm"], row["list"]) == curve]
            at = sorted((int(row["capacity"]), float(row["coverage"])) for row in points)
            axes.plot(*zip(*at, strict=True), marker="o", markersize=3, label=label)
        text = next(float(row["coverage"]) for row in of_trace if row["arm"] == "text")
        axes.axhline(text, color="grey", linewidth=1, linestyle=":", label="no list (text alone)")
        axes.set_xscale("log", base=2)
        axes.set_xticks([k for k, _ in at], [str(k) for k, _ in at], rotation=45)
        axes.set_title(trace.partition("__")[0] + "\n" + trace.partition("__")[2], fontsize=7)
        axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("coverage")
    for axes in panels[-1]:
        axes.set_xlabel("K")
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4)
    return figure


def policies(rows: list[Row]) -> Figure:
    """Draw the coverage of every policy at K = CAPACITY, from the worst mean to the best."""
    by_policy = defaultdict(dict)
    for row in rows:
        if row["capacity"] == str(CAPACITY):
            name = f"{row['arm']} ({row['list']})" if row["list"] else row["arm"]
            by_policy[name][row["trace"]] = float(row["coverage"])
    order = sorted(by_policy, key=lambda name: fmean(by_policy[name].values()))
    figure, axes = pyplot.subplots(figsize=(8, 0.24 * len(order) + 1.4), layout="constrained")
    for trace, marker in zip(in_order([row["trace"] for row in rows]), MARKERS, strict=False):
        at = [by_policy[name].get(trace) for name in order]
        axes.plot(at, order, marker, markersize=4, alpha=0.7, label=trace)
    means = [fmean(by_policy[name].values()) for name in order]
    axes.plot(means, order, "|", color="black", markersize=12, label="mean")
    axes.set_xlabel(f"coverage, K = {CAPACITY}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=7)
    return figure


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=report.RESULTS / "policy")
    args = parser.parse_args()
    with options.checking(parser):
        try:
            draw(args.folder)
        except Missing as missing:
            raise ValueError(f"{missing} in {args.folder}") from missing


if __name__ == "__main__":
    matplotlib.use("svg")
    main()
