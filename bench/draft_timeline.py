"""When each part of a draft runs, on which stream, by PyTorch's profiler.

On a GPU the draft is launched behind a kernel that keeps the device busy until the host has
enqueued everything: so the parts follow each other as in a graph, but for a few tenths of a
microsecond more between two kernels.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .draft import RANGE, Draft

AHEAD = 80_000_000  # cycles: about 45 ms for the host to enqueue a draft


def timeline(draft: Draft) -> list[dict[str, Any]]:
    """Rows of part, stream, start_us and end_us, the first starting at 0."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    for _ in range(2):  # what the profiler does for the first time takes its time
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
    """The named ranges of a Chrome trace: on a GPU, as their kernels ran on each stream."""
    category = "gpu_user_annotation" if on_gpu else "user_annotation"
    own = [
        event
        for event in events
        if event.get("cat") == category and event["name"].startswith(RANGE)
    ]
    own.sort(key=lambda event: float(event["ts"]))
    # Streams in the order of their first kernel of the layer or the head: the draft's own is 0.
    main = next((e["tid"] for e in own if e["name"] != f"{RANGE}gather"), None)
    began = float(own[0]["ts"]) if own else 0.0
    return [
        {
            "part": event["name"].removeprefix(RANGE),
            "stream": "draft" if event["tid"] == main else "side",
            "start_us": float(event["ts"]) - began,
            "end_us": float(event["ts"]) + float(event["dur"]) - began,
        }
        for event in own
    ]
