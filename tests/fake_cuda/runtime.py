# SPDX-License-Identifier: Apache-2.0
"""The functions of libcudart that bench/tuning/l2_window.py calls; they check their arguments."""

from typing import Any

from .memory import FakeCudaError

SET_ASIDE, WINDOW = 30 << 20, 128 << 20  # bytes: the most that an H200 gives
KERNELS, OTHER = (11, 13), 12  # nodes of every graph


def require(given: bool, call: str, *got: object) -> int:
    if not given:
        raise FakeCudaError(f"{call}: got {got}")
    return 0


class Runtime:
    def cudaDeviceGetAttribute(self, out: Any, which: int, device: int) -> int:
        out._obj.value = {108: SET_ASIDE, 109: WINDOW}[which]
        return require(device == 0, "cudaDeviceGetAttribute", device)

    def cudaDeviceSetLimit(self, limit: Any, size: Any) -> int:
        fits = limit.value == 6 and 0 <= size.value <= SET_ASIDE
        return require(fits, "cudaDeviceSetLimit", limit, size)

    def cudaCtxResetPersistingL2Cache(self) -> int:
        return 0

    def cudaGraphGetNodes(self, graph: Any, nodes: Any, count: Any) -> int:
        every = (KERNELS[0], OTHER, KERNELS[1])
        if nodes is not None:
            require(len(nodes) == count._obj.value == len(every), "cudaGraphGetNodes", count)
            nodes[:] = every
        count._obj.value = len(every)
        return 0

    def cudaGraphNodeGetType(self, node: Any, kind: Any) -> int:
        kind._obj.value = int(node.value == OTHER)
        return require(node.value in (*KERNELS, OTHER), "cudaGraphNodeGetType", node)

    def cudaGraphKernelNodeSetAttribute(self, node: Any, which: Any, value: Any) -> int:
        window = value._obj.accessPolicyWindow
        fits = 0 < window.hitRatio <= 1 and window.num_bytes <= WINDOW
        fits = fits and which.value == 1 and node.value in KERNELS
        return require(fits, "cudaGraphKernelNodeSetAttribute", node, which, window.num_bytes)

    def cudaGetLastError(self) -> int:
        return 0


def library(real: Any) -> Any:
    """Return a stand-in for ``ctypes.CDLL`` that has CUDA's runtime."""

    def load(name: Any, *arguments: Any, **options: Any) -> Any:
        if str(name).startswith("libcudart.so"):
            return Runtime()
        return real(name, *arguments, **options)

    return load
