# SPDX-License-Identifier: Apache-2.0
"""Plot coverage against the size of the active vocabulary."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from microspec_kernels._optional import require

from .run import Replay

# With these settings, equal results give equal files.
FIXED = {"svg.hashsalt": "microspec", "svg.fonttype": "none", "font.size": 9}


def plot(results: Sequence[Replay], path: Path) -> None:
    """Draw coverage against mean active size.

    There is a curve for each trace and policy, and a point for each capacity.

    Args:
        results: results of :func:`~.replay`.
        path: the .svg, .png or .pdf file to write.

    Raises:
        ValueError: no results, or another kind of file.
        ImportError: the `replay` extra is missing.
    """
    if not results:
        raise ValueError("plot: results: expected at least one, got none")
    curves = defaultdict(list)
    for result in results:
        curves[result.trace, result.policy].append(result)
    matplotlib = require("matplotlib", "replay")
    with matplotlib.rc_context(FIXED):
        figure = require("matplotlib.figure", "replay").Figure(layout="constrained")
        axes = figure.add_subplot(xlabel="mean active tokens", ylabel="coverage")
        for (trace, policy), points in curves.items():
            points.sort(key=lambda point: point.mean_active)
            sizes, shares = zip(*((p.mean_active, p.coverage) for p in points), strict=True)
            axes.plot(sizes, shares, marker="o", markersize=3, label=f"{trace}: {policy}")
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=metadata)
