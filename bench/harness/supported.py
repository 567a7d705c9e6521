# SPDX-License-Identifier: Apache-2.0
"""Say what the GPU of this machine can run."""

import torch

from microspec_kernels import sparse_head
from microspec_kernels._checks import E2M1, INT4

QUANTISED = (torch.float8_e4m3fn, torch.int8)
DTYPE_NAMES = {
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8",
    torch.int8: "int8",
    INT4: "int4",
    E2M1: "nvfp4",
}


def quantised() -> tuple[torch.dtype, ...]:
    """Return the 8-bit types of a slab. Without a GPU, where only the logic is tried, all."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return tuple(dtype for dtype in QUANTISED if serves(dtype, device))


def serves(dtype: torch.dtype, device: str) -> bool:
    """Return whether the head reads such rows, by trying one.

    The code that a GPU runs decides about fp8. It may be for an older GPU than this one.
    """
    hidden = torch.zeros(1, 16, dtype=torch.bfloat16, device=device)
    rows = torch.zeros(1, 16, dtype=torch.uint8, device=device).view(dtype)
    ids = torch.zeros(1, dtype=torch.int32, device=device)
    try:
        sparse_head(hidden, rows, ids, 1, weight_scale=torch.ones(1, device=device))
    except ValueError:
        return False
    return True


def has_triton() -> bool:
    """Return whether the package's Triton kernels and `torch.compile` run on this GPU."""
    from torch.utils._triton import has_triton as triton_runs

    return bool(triton_runs())
