"""Plots of figures that were kept, and of nothing else.

    python -m bench.plots [FOLDER ...]

Each folder of CSV files (default: this device's) gets its plots beside them, as SVG:

bytes.svg       time of a head against the bytes it has to read, with the floor that bandwidth sets
draft.svg       a draft step by part, a bar an arm
speedup.svg     dense head over sparse head, by model
timeline.svg    when what ran in a draft, a lane a stream

What there are no figures for is left out, which is said.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure

from microspec_kernels.cli.arguments import Parser

from . import options, plot_drafts, plot_heads, report
from .plot_data import Missing, device_of

FIXED = {"svg.hashsalt": "microspec", "svg.fonttype": "none", "font.size": 9}

PLOTS: dict[str, Callable[[Path], Figure]] = {
    "bytes": plot_heads.against_bytes,
    "draft": plot_drafts.draft,
    "speedup": plot_heads.speedup,
    "timeline": plot_drafts.timeline,
}


def draw(folder: Path) -> list[str]:
    """All plots that there are figures for; a line about each."""
    said = []
    with matplotlib.rc_context(FIXED):
        for name, plot in PLOTS.items():
            path = folder / f"{name}.svg"
            try:
                figure = plot(folder)
            except Missing as missing:
                said.append(f"{path.name} left out: {missing}")
                continue
            figure.suptitle(device_of(folder), fontsize=8)
            figure.set_layout_engine("constrained")
            figure.savefig(path, metadata={"Date": None})
            pyplot.close(figure)
            said.append(str(path))
    return said


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
