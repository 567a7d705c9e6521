# SPDX-License-Identifier: Apache-2.0
"""Helpers of the launchers: the properties of the device, and the device to launch on."""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import triton
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
HIP = torch.version.hip is not None


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Return the device's number of multiprocessors; 2 under the interpreter.

    Two keep the interpreter's grids small, but shaped like a device's.
    """
    if INTERPRETED:
        return 2
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@lru_cache
def converts_float8(device: torch.device) -> bool:
    """Return whether the hardware reads e4m3fn (sm_89 and later).

    Elsewhere the kernels convert its bits themselves.
    """
    return not INTERPRETED and not HIP and torch.cuda.get_device_capability(device) >= (8, 9)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which the tensor's device is current: Triton launches there."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
