# SPDX-License-Identifier: Apache-2.0
"""Plot the figures that head.csv, draft_step.csv and others hold.

    python -m bench.plots [FOLDER ...]

Each folder of CSV files (default: this device's) gets its plots beside them, as SVG:

bytes.svg       time of a head against the bytes it has to read, with the floor that bandwidth sets
draft.svg       a draft step by part, one bar for each arm
speedup.svg     dense head over sparse head, by model
timeline.svg    when each part of a draft ran, one lane for each stream

A plot without data is skipped and reported.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure

from bench.harness import options, report
from bench.harness.figures import Missing, device_of
from microspec_kernels.cli.arguments import Parser

from . import drafts, heads

# Fixed, so that the same figures give the same file.
FIXED = {"svg.hashsalt": "microspec", "svg.fonttype": "none", "font.size": 9}

PLOTS: dict[str, Callable[[Path], Figure]] = {
    "bytes": heads.against_bytes,
    "draft": drafts.draft,
    "speedup": heads.speedup,
    "timeline": drafts.timeline,
}


def draw(folder: Path) -> list[str]:
    """Draw all plots that there are figures for, and return a line about each."""
    lines = []
    with matplotlib.rc_context(FIXED):
        for name, plot in PLOTS.items():
            path = folder / f"{name}.svg"
            try:
                figure = plot(folder)
            except Missing as missing:
                lines.append(f"{path.name} left out: {missing}")
                continue
            figure.suptitle(device_of(folder), fontsize=8)
            figure.set_layout_engine("constrained")
            figure.savefig(path, metadata={"Date": None})
            pyplot.close(figure)
            lines.append(str(path))
    return lines


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    for folder in parser.parse_args().folders or [report.folder()]:
        if not folder.is_dir():
            parser.error(f"no folder {folder}")
        with options.checking(parser):
            print(*draw(folder), sep="\n")


if __name__ == "__main__":
    matplotlib.use("svg")
    main()
