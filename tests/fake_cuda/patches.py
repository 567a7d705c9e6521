# SPDX-License-Identifier: Apache-2.0
"""What of torch is replaced while the pretended device is installed."""

import contextlib
import ctypes
import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.utils._triton
from torch import Tensor

from . import runtime
from .graphs import CUDAGraph, graph, tensors_in
from .memory import FakeCudaError, Generator, device_of, new_storage, on_cuda
from .streams import Event, Stream, StreamContext, device, refuse_waiting

# An H200, with a small L2 cache.
PROPERTIES = types.SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, L2_cache_size=1 << 16,
    total_memory=143771 << 20, warp_size=32, max_threads_per_multi_processor=2048,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    regs_per_multiprocessor=65536,
)  # fmt: skip


class Profile(torch.profiler.profile):
    """Records the CPU alone; what it names counts as the device's in a trace."""

    def __init__(self, *, activities: Any = None, **options: Any) -> None:
        super().__init__(activities=[torch.profiler.ProfilerActivity.CPU], **options)

    def export_chrome_trace(self, path: str) -> None:
        super().export_chrome_trace(path)
        trace = json.loads(Path(path).read_text())
        for event in trace["traceEvents"]:
            if event.get("cat") == "user_annotation":
                event["cat"] = "gpu_user_annotation"
        Path(path).write_text(json.dumps(trace))


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Stand in for ``torch.compile``: return the function, which compiles in no capture."""
    if function is None:
        return lambda given: compiled(given, **options)
    compiled_for = set()

    def call(*arguments: Any, **more: Any) -> Any:
        kind = tuple((tuple(t.shape), t.dtype) for t in tensors_in((arguments, more)))
        if device.capturing() and kind not in compiled_for:
            raise FakeCudaError(f"a compiled function meets {kind} for the first time in a capture")
        compiled_for.add(kind)
        return function(*arguments, **more)

    return call


def record_stream(tensor: Tensor, stream: Stream) -> None:
    if not on_cuda(tensor) or not isinstance(stream, Stream):
        raise FakeCudaError(f"record_stream: got a tensor on {tensor.device} and {stream}")


def has_kernel(real: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """Let the package find CUDA kernels in its library: the CPU kernels serve for them."""
    return lambda op, key: (key == "CUDA" and op.startswith("microspec::")) or real(op, key)


def always(value: object) -> Callable[..., Any]:
    return lambda *arguments, **options: value


def of_cuda() -> dict[str, Any]:
    """Return the replaced names of ``torch.cuda``."""
    return {
        "is_available": always(True),
        "is_initialized": always(True),
        "init": always(None),
        "_lazy_init": always(None),
        "device_count": always(1),
        "current_device": always(0),
        "device": lambda which: contextlib.nullcontext(),
        "get_device_name": always(PROPERTIES.name),
        "get_device_capability": always((PROPERTIES.major, PROPERTIES.minor)),
        "get_device_properties": always(PROPERTIES),
        "synchronize": lambda which=None: refuse_waiting("synchronize"),
        "empty_cache": always(None),
        "mem_get_info": always((130 << 30, 139 << 30)),
        "memory_allocated": always(0),
        "memory_reserved": always(0),
        "max_memory_allocated": always(0),
        "reset_peak_memory_stats": always(None),
        "is_current_stream_capturing": device.capturing,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "stream": StreamContext,
        "StreamContext": StreamContext,
        "current_stream": lambda which=None: device.current,
        "default_stream": lambda which=None: device.default,
        "set_stream": lambda stream: setattr(device, "current", stream),
        "_sleep": always(None),
        "manual_seed": always(None),
        "manual_seed_all": always(None),
        "set_sync_debug_mode": device.set_sync_debug_mode,
        "get_sync_debug_mode": lambda: device.sync_debug_mode,
    }


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Replace what asks for, or belongs to, a device."""
    if torch.cuda.is_available():
        raise RuntimeError("there is a GPU: nothing to pretend")
    dispatch = "_dispatch_has_kernel_for_dispatch_key"
    replaced = [(torch.cuda, name, value) for name, value in of_cuda().items()]
    replaced += [
        (torch.version, "cuda", "13.0"),
        (torch.Tensor, "device", property(device_of)),
        (torch.Tensor, "is_cuda", property(on_cuda)),
        (torch.Tensor, "record_stream", record_stream),
        (torch, "Generator", Generator),
        (torch, "compile", compiled),
        (torch.UntypedStorage, "__new__", new_storage),
        (torch.profiler, "profile", Profile),
        (torch.utils._triton, "has_triton", always(True)),
        (torch._C, dispatch, has_kernel(getattr(torch._C, dispatch))),
        (ctypes, "CDLL", runtime.library(ctypes.CDLL)),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value))
        yield
