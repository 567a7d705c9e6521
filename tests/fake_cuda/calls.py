# SPDX-License-Identifier: Apache-2.0
"""The mode that sees every call of PyTorch: it passes marks on, and refuses as a GPU would."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import ops
from .graphs import tensors_in
from .memory import (
    CPU,
    CUDA,
    FakeCudaError,
    Generator,
    as_device,
    is_pinned,
    mark,
    on_cuda,
    storage_of,
)
from .streams import device, refuse_in_capture, refuse_waiting

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
FROM_HOST = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
PASSED_ON = {"__get__", "__set__", "_parse_to"}


class FakeCuda(TorchFunctionMode):
    """Serves tensors of the pretended device by the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.before_captures: set[Any] = set()  # the calls that ran outside of captures

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:
        options = dict(options or {})
        name = getattr(function, "__name__", "")
        if name in PASSED_ON or "profiler" in str(function):
            return function(*arguments, **options)
        if function in MOVES:
            return MOVES[function](self, function, arguments, options)
        return self.call(function, arguments, options)

    def call(
        self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any], to: Any = None
    ) -> Any:
        """Check and make a call; its new tensors are on the device that it or its arguments name.

        Args:
            to: the device of the result; None: the device of the arguments.
        """
        wanted = to or as_device(options.get("device"))
        if wanted is not None and wanted.type == "cuda" and "device" in options:
            options["device"] = "cpu"
        pinned = bool(options.pop("pin_memory", False))
        given = tensors_in((arguments, options))
        there = [on_cuda(tensor) for tensor in given]
        result_there = wanted.type == "cuda" if wanted is not None else any(there)
        if any(there):
            check_devices(function, arguments, given, there)
            if what := waits(function, arguments, options):
                refuse_waiting(what)
            arguments, options = ops.prepared(function, arguments, options)
        if function in FROM_HOST and result_there:
            refuse_waiting(f"{function.__name__}(…, device='cuda')")
        check_generator(options.get("generator"), result_there)
        held = {storage._cdata for t in given if (storage := storage_of(t)) is not None}
        served = REPLACED.get(str(function), function) if any(there) else function
        result = served(*arguments, **options)
        results = tensors_in(result)
        for tensor in results:
            storage = storage_of(tensor)
            if storage is not None and storage._cdata not in held:
                mark(tensor, cuda=result_there, pinned=pinned)
        if result_there or any(there):
            self.note(function, given, (served, arguments, options, results))
        return result

    def note(self, function: Any, given: list[Tensor], call: Any) -> None:
        """Add a call to the capture, or else remember that it ran outside of one."""
        kind = (function, *((t.shape, t.dtype) for t in given))
        if device.capture is None:
            self.before_captures.add(kind)
            return
        if kind not in self.before_captures:
            sizes = [(list(t.shape), str(t.dtype)) for t in given]
            raise FakeCudaError(f"{function.__name__} of {sizes} runs first in a capture")
        device.capture.add(call)


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


def move(mode: FakeCuda, function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Stand in for ``Tensor.to``, ``cuda`` and ``cpu``."""
    tensor, *rest = arguments
    copy = options.pop("copy", False)
    other = options.pop("other", rest[0] if rest else None)
    if function is Tensor.cpu:
        wanted, dtype, non_blocking, layout = CPU, None, False, options.get("memory_format")
    elif function is Tensor.cuda:
        named = options.get("device", rest[0] if rest else None)
        wanted = CUDA if named is None or isinstance(named, int) else as_device(named)
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
        return mode.call(Tensor.to, (tensor,), {**named, **kind, **options, "copy": copy})
    crosses = (wanted.type == "cuda") != there
    if crosses and (what := copy_waits(is_pinned(tensor) or there, non_blocking)):
        refuse_waiting(what)
    kind = dtype or tensor.dtype
    if not (crosses or copy or kind != tensor.dtype or options):
        return tensor
    return mode.call(Tensor.to, (tensor, kind), {**options, "copy": crosses or copy}, to=wanted)


def as_tensor(mode: FakeCuda, function: Any, arguments: tuple[Any, ...], options: Any) -> Any:
    """Stand in for ``torch.as_tensor``, which may return its argument."""
    value = arguments[0]
    if isinstance(value, Tensor):
        wanted = {name: options[name] for name in ("device", "dtype") if options.get(name)}
        return move(mode, Tensor.to, (value,), wanted) if wanted else value
    return mode.call(torch.tensor, arguments, options)


def pin(mode: FakeCuda, function: Any, arguments: tuple[Any, ...], options: Any) -> Tensor:
    if on_cuda(arguments[0]):
        raise FakeCudaError("cannot pin memory of the device")
    return mark(arguments[0].clone(), pinned=True)


def pinned(mode: FakeCuda, function: Any, arguments: tuple[Any, ...], options: Any) -> bool:
    return is_pinned(arguments[0])


MOVES: dict[Any, Callable[..., Any]] = {
    Tensor.to: move,
    Tensor.cuda: move,
    Tensor.cpu: move,
    torch.as_tensor: as_tensor,
    Tensor.pin_memory: pin,
    Tensor.is_pinned: pinned,
}


def wide_product(a: Tensor, b: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """Stand in for ``torch.mm``, whose ``out_dtype`` a CPU does not have."""
    if out_dtype is None:
        return torch.mm(a, b)
    if out_dtype not in (a.dtype, torch.float32) or a.dtype != b.dtype:
        raise FakeCudaError(f"mm: out_dtype: expected {a.dtype} or float32, got {out_dtype}")
    return (a.float() @ b.float()).to(out_dtype)


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, **options: Any
) -> tuple[Any, ...]:
    """Stand in for CUDA's op with its nine results, and refuse what it refuses."""
    if q.dtype not in (torch.bfloat16, torch.float16) or q.size(-1) > 256 or q.size(-1) % 8:
        raise FakeCudaError(f"flash attention: got {q.dtype}, head size {q.size(-1)}")
    if any(t.stride(-1) != 1 for t in (q, k, v)) or not q.size(1) == k.size(1) == v.size(1):
        raise FakeCudaError("flash attention: expected unit strides, and heads of q for k and v")
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, logsumexp = op(q, k, v, dropout_p, is_causal, scale=options.get("scale"))
    nothing = torch.empty(0)
    return out, logsumexp, nothing, nothing, q.size(2), k.size(2), nothing, nothing, nothing


REPLACED: dict[str, Callable[..., Any]] = {
    str(torch.mm): wide_product,
    "aten._scaled_dot_product_flash_attention": flash_attention,
    "aten::_scaled_dot_product_flash_attention": flash_attention,
}
