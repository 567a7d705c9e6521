# SPDX-License-Identifier: Apache-2.0
"""Record when each part of a draft runs, and on which stream, by PyTorch's profiler.

On a GPU a kernel in front of the draft keeps the device busy until the host has enqueued all of it.
So the parts follow each other as in a graph, with a few tenths of a microsecond more between two
kernels.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .graph import RANGE

AHEAD = 80_000_000  # cycles: about 45 ms for the host to enqueue a draft


def timeline(draft: Callable[[], object]) -> list[dict[str, Any]]:
    """Return rows of part, stream, start_us and end_us; the first starts at 0."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    for _ in range(2):  # the profiler's first run is slow
        with profile(activities=activities) as profiler:
            if on_gpu:
                torch.cuda._sleep(AHEAD)
            draft()
            if on_gpu:
                torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return spans(json.loads(path.read_text())["traceEvents"], on_gpu)


def spans(events: list[dict[str, Any]], on_gpu: bool) -> list[dict[str, Any]]:
    """Return the named ranges of a Chrome trace: on a GPU, those of the kernels on each stream."""
    category = "gpu_user_annotation" if on_gpu else "user_annotation"
    ranges = [
        event
        for event in events
        if event.get("cat") == category and event["name"].startswith(RANGE)
    ]
    ranges.sort(key=lambda event: float(event["ts"]))
    # Only the gather may run on the side stream.
    main = next((e["tid"] for e in ranges if e["name"] != f"{RANGE}gather"), None)
    began = float(ranges[0]["ts"]) if ranges else 0.0
    return [
        {
            "part": event["name"].removeprefix(RANGE),
            "stream": "draft" if event["tid"] == main else "side",
            "start_us": float(event["ts"]) - began,
            "end_us": float(event["ts"]) + float(event["dur"]) - began,
        }
        for event in ranges
    ]
