# SPDX-License-Identifier: Apache-2.0
"""Find and load the compiled library, which registers ``torch.ops.microspec.*``."""

import ctypes
from pathlib import Path

import torch

PATH = Path(__file__).with_name("libmicrospec.so")
_ERROR = "ValueError: "  # the library returns a text with this prefix instead of a name


def load() -> None:
    """Load the library, which registers the schemas of all ops.

    Raises:
        ImportError: the library is missing or does not match this torch.
    """
    if not PATH.exists():
        raise ImportError(
            f"microspec_kernels has no compiled library at {PATH}; install the package with "
            "`pip install --no-build-isolation .` (or `make build` in a checkout)"
        )
    try:
        torch.ops.load_library(PATH)
    except OSError as error:
        raise ImportError(
            f"{PATH} needs torch >= 2.10 and does not load under {torch.__version__}: {error}"
        ) from error


def instruction_set() -> str:
    """Name the instruction set that the CPU kernels use: "amx", "neon", "portable", …

    Raises:
        ValueError: this processor lacks the instruction set that ``MICROSPEC_ISA`` names.
    """
    function = ctypes.CDLL(str(PATH)).microspec_instruction_set
    function.restype = ctypes.c_char_p
    name: str = function().decode()
    if name.startswith(_ERROR):
        raise ValueError(name.removeprefix(_ERROR))
    return name


def cuda_architectures() -> str | None:
    """Name the GPUs of the compiled CUDA kernels: "80-real 90a-real". None without kernels."""
    function = ctypes.CDLL(str(PATH)).microspec_cuda_architectures
    function.restype = ctypes.c_char_p
    names: bytes | None = function()
    return None if names is None else names.decode()
