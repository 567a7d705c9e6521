# SPDX-License-Identifier: Apache-2.0
"""Show the installation and the device; --advise says when a dense head is faster for a model."""

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from microspec_kernels.device import cpu_name

from .arguments import check_used
from .shapes import SHAPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--advise", metavar="MODEL", help=f"the model, one of {', '.join(SHAPES)}")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder of measured figures (default: bench/results of the checkout)",
    )
    parser.add_argument(
        "--run", action="store_true", help="measure the figures for --advise now, in about a minute"
    )


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
