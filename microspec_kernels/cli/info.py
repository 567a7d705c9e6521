"""What is installed here, and what it runs on."""

import argparse
import os
import platform
import re
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # nothing beyond what every command takes


def run(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from microspec_kernels import __version__, backend, backends
    from microspec_kernels._library import PATH, cuda_architectures, instruction_set

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts = {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backend": backend(),
        "backends": list(backends.NAMES),
        "device": gpus or [cpu_name()],
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": instruction_set(),
        "cuda": cuda_architectures() or "built without nvcc",
        "library": str(PATH),
        "library_bytes": PATH.stat().st_size,
        "abi": "torch stable, 2.10",
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<{width}}  {text}")
    return facts


def cpu_name() -> str:
    """The CPU's own name, with family and model, which a virtual machine's name often hides."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    pattern = r"^(model name|cpu family|model)\s*: (.*)$"
    fields: dict[str, str] = dict(re.findall(pattern, text, re.MULTILINE))
    name = fields.get("model name", platform.machine())
    if "cpu family" not in fields:
        return name
    return f"{name} (family {fields['cpu family']}, model {fields['model']})"
