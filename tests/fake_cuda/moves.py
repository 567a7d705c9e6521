# SPDX-License-Identifier: Apache-2.0
"""Calls that move a tensor between host and device, or pin its memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .memory import CPU, CUDA, FakeCudaError, as_device, is_pinned, mark, on_cuda
from .rules import copy_waits
from .streams import refuse_waiting

Call = Callable[..., Any]  # FakeCuda.call


def move(call: Call, function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Stand in for ``Tensor.to``, ``cuda`` and ``cpu``."""
    tensor, *rest = arguments
    copy = options.pop("copy", False)
    other = options.pop("other", rest[0] if rest else None)
    if function is Tensor.cpu:
        wanted, dtype, non_blocking, layout = CPU, None, False, options.get("memory_format")
    elif function is Tensor.cuda:
        named = options.get("device", rest[0] if rest else None)
        wanted = CUDA if named is None else as_device(named)
        dtype, non_blocking, layout = None, options.get("non_blocking", False), None
    elif isinstance(other, Tensor):
        wanted, dtype = other.device, other.dtype
        non_blocking, layout = options.get("non_blocking", False), options.get("memory_format")
    else:
        with torch._C.DisableTorchFunction():
            wanted, dtype, non_blocking, layout = torch._C._nn._parse_to(*rest, **options)
        wanted = as_device(wanted)
    options = {} if layout is None else {"memory_format": layout}
    there = on_cuda(tensor)
    if wanted is None or wanted.type not in ("cpu", "cuda"):
        named = {} if wanted is None else {"device": wanted}
        kind = {} if dtype is None else {"dtype": dtype}
        return call(Tensor.to, (tensor,), {**named, **kind, **options, "copy": copy})
    crosses = (wanted.type == "cuda") != there
    if crosses and (what := copy_waits(is_pinned(tensor) or there, non_blocking)):
        refuse_waiting(what)
    kind = dtype or tensor.dtype
    if not (crosses or copy or kind != tensor.dtype or options):
        return tensor
    return call(Tensor.to, (tensor, kind), {**options, "copy": crosses or copy}, to=wanted)


def as_tensor(call: Call, function: Any, arguments: tuple[Any, ...], options: Any) -> Any:
    """Stand in for ``torch.as_tensor``, which may return its argument."""
    value = arguments[0]
    if isinstance(value, Tensor):
        named = {name: options[name] for name in ("device", "dtype") if options.get(name)}
        return move(call, Tensor.to, (value,), named) if named else value
    wanted = as_device(options.get("device"))
    copies = wanted is not None and wanted.type == "cuda"
    return call(torch.tensor if copies else function, arguments, options)


def pin(call: Call, function: Any, arguments: tuple[Any, ...], options: Any) -> Tensor:
    if on_cuda(arguments[0]):
        raise FakeCudaError("cannot pin memory of the device")
    return mark(arguments[0].clone(), pinned=True)


def pinned(call: Call, function: Any, arguments: tuple[Any, ...], options: Any) -> bool:
    return is_pinned(arguments[0])


MOVES: dict[Any, Callable[..., Any]] = {
    Tensor.to: move,
    Tensor.cuda: move,
    Tensor.cpu: move,
    torch.as_tensor: as_tensor,
    Tensor.pin_memory: pin,
    Tensor.is_pinned: pinned,
}
