# SPDX-License-Identifier: Apache-2.0
"""What a GPU would refuse: tensors of two devices in one call, and what waits for the device."""

from typing import Any

import torch
from torch import Tensor

from .graphs import tensors_in
from .memory import FakeCudaError, Generator, is_pinned, on_cuda
from .streams import refuse_in_capture

# These read values of a tensor on the host.
WAITING = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__),
    *(Tensor.__index__, Tensor.__contains__, Tensor.__repr__, Tensor.__format__),
    *(Tensor.nonzero, torch.nonzero, torch.argwhere, Tensor.unique, torch.unique, torch.bincount),
    *(Tensor.masked_select, torch.masked_select, torch.equal, Tensor.equal),
    *(torch.allclose, Tensor.allclose),
}
# Tensors of two devices may meet here.
ANY_DEVICE = {
    *(Tensor.copy_, Tensor.set_, Tensor.__getitem__, Tensor.__setitem__, Tensor.type_as),
    *(Tensor.__deepcopy__, Tensor.__reduce_ex__, torch._has_compatible_shallow_copy_type),
}
INDEXING = {Tensor.__getitem__, Tensor.__setitem__}


def check_devices(
    function: Any, arguments: tuple[Any, ...], given: list[Tensor], there: list[bool]
) -> None:
    """Refuse tensors of two devices; the package's ops refuse them themselves (ops.py)."""
    name = getattr(function, "__name__", "")
    if function is Tensor.numpy:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    if function in INDEXING:
        indices = tensors_in(arguments[1])
        if not there[0] and any(map(on_cuda, indices)):
            raise FakeCudaError(f"{name}: indices should be on cpu, not cuda")
        if function is Tensor.__setitem__ and indices and isinstance(arguments[2], Tensor):
            value = arguments[2]
            if value.dim() and on_cuda(value) != there[0]:
                raise FakeCudaError(f"{name}: values and tensor on two devices")
    elif function not in ANY_DEVICE and "microspec" not in str(function):
        found = [(list(t.shape), "cuda" if f else "cpu") for t, f in zip(given, there, strict=True)]
        if any(not f and t.dim() for t, f in zip(given, there, strict=True)):
            raise FakeCudaError(f"{name}: expected all tensors on the same device, got {found}")


def check_generator(generator: Any, there: bool) -> None:
    if generator is None or not isinstance(generator, Generator):
        return
    if (generator.device.type == "cuda") != there:
        wanted = "cuda" if there else "cpu"
        raise FakeCudaError(f"expected a generator on {wanted}, got {generator.device}")


def waits(function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    """Say what in a call waits for the device; "" for nothing."""
    name = getattr(function, "__name__", "")
    if function in WAITING or (function is torch.where and len(arguments) == 1):
        return name
    if function in (Tensor.repeat_interleave, torch.repeat_interleave):
        counts = options.get("repeats", arguments[1] if len(arguments) > 1 else None)
        return name if isinstance(counts, Tensor) and "output_size" not in options else ""
    if function in INDEXING:
        given = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
        value = arguments[2] if len(arguments) > 2 else None
        found = (what for index in given if (what := _waiting_index(index, value)))
        return next((f"{name} with {what}" for what in found), "")
    if function is Tensor.copy_ and on_cuda(arguments[0]) != on_cuda(arguments[1]):
        host = arguments[0] if on_cuda(arguments[1]) else arguments[1]
        without = bool(options.get("non_blocking", arguments[2] if len(arguments) > 2 else False))
        return copy_waits(is_pinned(host), without)
    return ""


def _waiting_index(index: object, value: object) -> str:
    """Say why an index waits for the device; ``value`` is what is written there, or None."""
    if isinstance(index, list):
        return "a list"
    if not isinstance(index, Tensor):
        return ""
    if index.dtype == torch.bool:  # a plain number is filled in without reading the mask
        number = value is not None and not isinstance(value, Tensor)
        return "" if number else "a boolean mask"
    if index.dim() == 0:
        return "a number on the device" if on_cuda(index) else ""
    return "" if on_cuda(index) else "indices on the CPU"


def copy_waits(pinned: bool, non_blocking: bool) -> str:
    """Say whether a copy between host and device waits for it; in captures pageable memory does."""
    if not non_blocking:
        return "a blocking copy between host and device"
    if not pinned:
        refuse_in_capture("a copy from or to pageable memory")
    return ""
