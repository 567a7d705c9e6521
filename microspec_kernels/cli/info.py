# SPDX-License-Identifier: Apache-2.0
"""Show the installation and the device; --advise says when a dense head is faster for a model."""

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from microspec_kernels.device import cpu_name

from .arguments import check_used, positive
from .shapes import SHAPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--advise",
        metavar="MODEL",
        help="say how many active tokens a model's bytes are worth: its folder, config.json or "
        f"name on the hub, or one of {', '.join(SHAPES)}; figures that were measured follow",
    )
    parser.add_argument(
        "--target", metavar="MODEL", help="the target, if --advise names a draft model"
    )
    parser.add_argument(
        "--drafts", type=positive, metavar="N", help="drafted tokens of a step (default: 5)"
    )
    parser.add_argument(
        "--requests", type=positive, metavar="N", help="requests that run at a time (default: 1)"
    )
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
        ("target", args.advise is not None, "--advise MODEL"),
        ("drafts", args.advise is not None, "--advise MODEL"),
        ("requests", args.advise is not None, "--advise MODEL"),
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
