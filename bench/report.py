"""Where and on what a benchmark ran, and how its figures are kept."""

import csv
import datetime
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import microspec_kernels
from microspec_kernels.device import device_name as device

RESULTS = Path(__file__).parent / "results"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parent)
    except OSError:  # no such program
        return ""
    return done.stdout.strip()


def facts() -> dict[str, str]:
    """What every row of figures carries, so that a CSV file stands for itself.

    MICROSPEC_COMMIT names the commit where the sources are a copy without their repository.
    """
    commit = os.environ.get("MICROSPEC_COMMIT") or _output("git", "describe", "--always", "--dirty")
    return {
        "device": device(),
        **(_gpu() if torch.cuda.is_available() else {}),
        "torch": torch.__version__,
        "microspec": microspec_kernels.__version__,
        "commit": commit or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def _gpu() -> dict[str, str]:
    """Clocks as they are now, so to be asked for right after a measurement, and as they can be."""
    fields = ("clocks.sm", "clocks.max.sm", "clocks.mem", "driver_version")
    told = _output("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    values = told.splitlines()[0].split(", ") if told else [""] * len(fields)
    names = ("sm_MHz", "max_sm_MHz", "memory_MHz", "driver")
    return {**dict(zip(names, values, strict=True)), "cuda": str(torch.version.cuda)}


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
