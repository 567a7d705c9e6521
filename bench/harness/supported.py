# SPDX-License-Identifier: Apache-2.0
"""Say what the GPU of this machine can run."""

import torch

from microspec_kernels._checks import INT4

QUANTISED = (torch.float8_e4m3fn, torch.int8)
DTYPE_NAMES = {
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8",
    torch.int8: "int8",
    INT4: "int4",
}


def quantised() -> tuple[torch.dtype, ...]:
    """Return the 8-bit types of a slab. Without a GPU, where only the logic is tried, all."""
    if not torch.cuda.is_available():
        return QUANTISED
    return QUANTISED if torch.cuda.get_device_capability() >= (8, 9) else (torch.int8,)


def has_triton() -> bool:
    """Return whether the package's Triton kernels and `torch.compile` run on this GPU."""
    from torch.utils._triton import has_triton as triton_runs

    return bool(triton_runs())
