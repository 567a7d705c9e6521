"""Where and on what a benchmark ran, and how its figures are kept."""

import csv
import datetime
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import microspec_kernels
from microspec_kernels import _library
from microspec_kernels.cli.info import cpu_name

RESULTS = Path(__file__).parent / "results"


def device() -> str:
    """What the figures are of: the GPU's name, or the CPU's with its threads and instructions."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    threads = torch.get_num_threads()
    return f"{cpu_name()}, {threads} threads, {_library.instruction_set()}"


def facts() -> dict[str, str]:
    """What every row of figures carries, so that a CSV file stands for itself."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
    )
    return {
        "device": device(),
        "torch": torch.__version__,
        "microspec": microspec_kernels.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def folder() -> Path:
    """``bench/results/<device>``."""
    name = re.sub(r"\(R\)|\(TM\)|\(.*?\)", "", device())
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    common = facts()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *common], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            short = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow({**short, **common})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table, floats with four significant digits."""
    text = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *text]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
