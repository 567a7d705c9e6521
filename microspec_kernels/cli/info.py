"""What is installed here, and what it runs on; --advise says when a dense head serves better."""

import argparse
import os
import platform
import re
from pathlib import Path
from typing import Any

from .arguments import check_used


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .advise import SHAPES

    parser.add_argument(
        "--advise", metavar="MODEL", help=f"by measured figures; one of {', '.join(SHAPES)}"
    )
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="of figures; default: the checkout's"
    )
    parser.add_argument("--run", action="store_true", help="measure now, a minute, for --advise")


def run(args: argparse.Namespace) -> dict[str, Any]:
    check_used(
        args,
        ("run", args.advise is not None, "--advise MODEL"),
        ("results", args.advise is not None, "--advise MODEL"),
        ("results", not args.run, "--advise MODEL without --run"),
    )
    if args.advise is not None:
        from . import advise

        return advise.run(args)
    import torch

    from microspec_kernels import backends
    from microspec_kernels._library import PATH, cuda_architectures, instruction_set
    from microspec_kernels._version import __version__

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts = {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backend": backends.backend(),
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


def device_name() -> str:
    """What figures measured here are of: the GPU, or the CPU with its threads and instructions."""
    import torch

    from microspec_kernels._library import instruction_set

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{cpu_name()}, {torch.get_num_threads()} threads, {instruction_set()}"


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
