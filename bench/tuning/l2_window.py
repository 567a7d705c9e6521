# SPDX-License-Identifier: Apache-2.0
"""Set part of the L2 cache aside for what the kernels of a graph read in a window of addresses.

PyTorch does not offer this, so we call the CUDA runtime that PyTorch has loaded. The window is an
attribute of the kernel nodes (CUDA C++ Programming Guide, "Device Memory L2 Access Management").
Structures and constants are those of driver_types.h.
"""

import ctypes
import os

import torch
from torch import Tensor

LIMIT = 6  # cudaLimitPersistingL2CacheSize
MOST, LARGEST = 108, 109  # cudaDevAttrMaxPersistingL2CacheSize, …MaxAccessPolicyWindowSize
WINDOW = 1  # cudaLaunchAttributeAccessPolicyWindow
KERNEL = 0  # cudaGraphNodeTypeKernel
STREAMING, PERSISTING = 1, 2  # cudaAccessProperty


class Unavailable(RuntimeError):
    """There is no persisting cache here; the message says why."""


class AccessPolicyWindow(ctypes.Structure):
    _fields_ = (
        ("base_ptr", ctypes.c_void_p),
        ("num_bytes", ctypes.c_size_t),
        ("hitRatio", ctypes.c_float),
        ("hitProp", ctypes.c_int),
        ("missProp", ctypes.c_int),
    )


class AttributeValue(ctypes.Union):
    """cudaLaunchAttributeValue"""

    _fields_ = (("pad", ctypes.c_char * 64), ("accessPolicyWindow", AccessPolicyWindow))


class Cache:
    """The persisting part of the current device's L2 cache.

    Raises:
        Unavailable: here and in every method, if there is no CUDA runtime that supports it.
    """

    def __init__(self) -> None:
        if torch.version.cuda is None or not torch.cuda.is_available():
            raise Unavailable("persisting L2: PyTorch sees no CUDA GPU")
        torch.cuda.init()
        name = f"libcudart.so.{torch.version.cuda.split('.')[0]}"
        try:
            self._runtime = ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
        except OSError as error:
            raise Unavailable(f"persisting L2: PyTorch has not loaded {name}: {error}") from error
        self.most, self.largest = self._device_attribute(MOST), self._device_attribute(LARGEST)
        if self.most == 0 or self.largest == 0:
            raise Unavailable("persisting L2: this GPU, or this part of one, sets no cache aside")

    def set_aside(self, size: int) -> None:
        """Reserve `size` bytes, at most ``most``, for persisting accesses, and empty them."""
        self._call("cudaDeviceSetLimit", ctypes.c_int(LIMIT), ctypes.c_size_t(size))
        self._call("cudaCtxResetPersistingL2Cache")

    def keep(self, graph: torch.cuda.CUDAGraph, rows: Tensor) -> None:
        """Let what the graph's kernels read of ``rows`` persist, up to ``most`` bytes of it.

        Args:
            graph: captured with keep_graph=True, and not yet instantiated.
        """
        size = min(rows.nbytes, self.largest)
        value = AttributeValue()
        value.accessPolicyWindow = AccessPolicyWindow(
            rows.data_ptr(), size, min(1.0, self.most / size), PERSISTING, STREAMING
        )
        handle, count = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
        self._call("cudaGraphGetNodes", handle, None, ctypes.byref(count))
        nodes = (ctypes.c_void_p * count.value)()
        self._call("cudaGraphGetNodes", handle, nodes, ctypes.byref(count))
        for node in map(ctypes.c_void_p, nodes):
            kind = ctypes.c_int()
            self._call("cudaGraphNodeGetType", node, ctypes.byref(kind))
            if kind.value == KERNEL:
                what = ctypes.byref(value)
                self._call("cudaGraphKernelNodeSetAttribute", node, ctypes.c_int(WINDOW), what)

    def _device_attribute(self, which: int) -> int:
        value = ctypes.c_int()
        device = torch.cuda.current_device()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    def _call(self, name: str, *arguments: object) -> None:
        try:
            function = getattr(self._runtime, name)
        except AttributeError as error:
            raise Unavailable(f"persisting L2: the CUDA runtime has no {name}") from error
        if code := function(*arguments):
            # Clear the error, or PyTorch's next check would find it.
            self._runtime.cudaGetLastError()
            raise Unavailable(f"persisting L2: {name}: CUDA error {code}")
