# SPDX-License-Identifier: Apache-2.0
"""Record where and with which versions a benchmark ran, and write its figures."""

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

RESULTS = Path(__file__).parents[1] / "results"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parent)
    except OSError:  # no such program
        return ""
    return done.stdout.strip()


def facts() -> dict[str, str]:
    """Return the columns that end every row, so that a CSV file explains itself.

    MICROSPEC_COMMIT names the commit if the sources are a copy without their repository.
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
    """Return the current clocks, the largest possible one, and versions.

    Call it right after a measurement: the clocks are still those of the measurement.
    """
    fields = ("clocks.sm", "clocks.max.sm", "clocks.mem", "driver_version")
    query = f"--query-gpu={','.join(fields)}"
    answer = _output("nvidia-smi", query, "--format=csv,noheader,nounits")
    values = answer.splitlines()[0].split(", ") if answer else [""] * len(fields)
    names = ("sm_MHz", "max_sm_MHz", "memory_MHz", "driver")
    return {**dict(zip(names, values, strict=True)), "cuda": str(torch.version.cuda)}


def folder() -> Path:
    """Return ``bench/results/<device>``."""
    name = re.sub(r"\(R\)|\(TM\)|\(.*?\)", "", device())
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the same keys, and :func:`facts` behind each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    common = facts()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *common], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            short = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow({**short, **common})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format rows as a Markdown table, floats with four significant digits."""
    text = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *text]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
