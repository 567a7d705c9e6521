"""What the launchers share: the device they size their grids for, and where they launch."""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import triton
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
HIP = torch.version.hip is not None


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has; the interpreter is given a few, so that grids have their shape."""
    if INTERPRETED:
        return 2
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@lru_cache
def converts_float8(device: torch.device) -> bool:
    """Whether the hardware reads e4m3fn: sm_89 and later. Elsewhere its bits are taken apart."""
    return not INTERPRETED and not HIP and torch.cuda.get_device_capability(device) >= (8, 9)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
