# SPDX-License-Identifier: Apache-2.0
"""Draw a step of the loop as a timeline: a lane for each stream, a bar for each run of a part."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

from microspec_kernels._optional import require
from microspec_kernels.replay.plot import FIXED

# The parts of the loop's clock in the order of a step: their names, and colours that also differ in
# grey. Drafting is warm, and the target is cold.
PARTS = {
    "head": ("draft head", "#d1495b"),
    "tree": ("draft tree", "#edae49"),
    "draft_layer": ("draft layer", "#f4d9a6"),
    "verify": ("verification", "#30638e"),
    "vocabulary": ("vocabulary", "#66a182"),
    "gather": ("gather", "#003d5b"),
}
WIDE = 0.11  # share of a step from which on a bar has room for its name


class Step(NamedTuple):
    """One step: its length in milliseconds, its spans, and the tokens it yielded."""

    length: float
    spans: Sequence[Any]
    tokens: int


def median_step(steps: Sequence[tuple[float, Sequence[Any]]], tokens: Sequence[int]) -> Step:
    """Return the step of the median length, of the lower one if their number is even.

    The first step, which pays for allocations, does not count if there are others.

    Args:
        steps: from :meth:`~.Timeline.steps`; at least one.
        tokens: the number of tokens of each.
    """
    counted = list(zip(steps, tokens, strict=True))[1 if len(steps) > 1 else 0 :]
    middle = median_low([length for (length, _), _ in counted])
    return next(Step(*step, n) for step, n in counted if step[0] == middle)


def draw(step: Step, count: int, title: str, path: Path) -> None:
    """Draw a step.

    Args:
        step: the step, of ``count`` steps the median.
        title: what ran.
        path: the .svg, .png or .pdf file to write.

    Raises:
        ImportError: the `replay` extra is missing.
    """
    lanes = list(dict.fromkeys(span.stream for span in sorted(step.spans, key=lambda s: s.stream)))
    matplotlib = require("matplotlib", "replay")
    with matplotlib.rc_context(FIXED):
        figure = require("matplotlib.figure", "replay").Figure(
            figsize=(9, 1.5 + 0.55 * len(lanes)), layout="constrained"
        )
        axes = figure.add_subplot()
        for number, span in enumerate(step.spans):
            name, colour = PARTS[span.part]
            width, place = span.end - span.start, lanes.index(span.stream)
            bar = axes.barh(
                place, width, 0.72, span.start, color=colour, edgecolor="white", linewidth=0.4
            )[0]
            bar.set_gid(f"{span.part} {place} {number}")
            if width > WIDE * step.length:
                text = {"ha": "center", "va": "center", "fontsize": 8}
                dark = span.part in ("verify", "gather", "head")
                middle = span.start + width / 2
                axes.text(middle, place, name, color="white" if dark else "black", **text)
        for part, (name, colour) in PARTS.items():
            times = [span.end - span.start for span in step.spans if span.part == part]
            if times:
                share = f"{sum(times):.2f} ms, {sum(times) / step.length:.0%}"
                axes.bar(0, 0, color=colour, label=f"{name}\n{share}")
        axes.set_yticks(range(len(lanes)), lanes)
        axes.invert_yaxis()
        axes.set_xlim(0, step.length)
        axes.set_xlabel("milliseconds since the step's beginning")
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        tokens = f"{step.tokens} token{'s' if step.tokens > 1 else ''}"
        median = f"median of {count} steps: {step.length:.2f} ms for {tokens}"
        axes.set_title(median, loc="right", fontsize=9)
        figure.legend(loc="outside lower center", ncols=len(PARTS), frameon=False, fontsize=8)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=metadata, dpi=150)
