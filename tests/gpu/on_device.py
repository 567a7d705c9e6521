# SPDX-License-Identifier: Apache-2.0
"""``torch.ops.microspec.*`` for CPU tensors on the GPU: copy, call, copy the results back.

A tensor moves with its whole storage, so strides, offsets and the memory between rows (poison in
these tests) are the same on the device.
"""

from typing import Any

import torch
from schemas import SCHEMAS
from torch import Tensor

from microspec_kernels import backends


class Moved:
    """The storages of one call, each copied once."""

    def __init__(self, device: str = "cuda") -> None:
        self._device = device
        self._storages: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def there(self, value: Any) -> Any:
        """Return the same view of the storage's copy on the device; other values are unchanged."""
        if not isinstance(value, Tensor):
            return value
        source = value.untyped_storage()
        if source.data_ptr() not in self._storages:
            copy = torch.UntypedStorage(source.nbytes(), device=self._device)
            copy.copy_(source)
            self._storages[source.data_ptr()] = (source, copy)
        storage = self._storages[source.data_ptr()][1]
        empty = torch.empty(0, dtype=value.dtype, device=self._device)
        return empty.set_(storage, value.storage_offset(), value.size(), value.stride())

    def back(self) -> None:
        """Copy everything that the device wrote back to the CPU storages."""
        for source, copy in self._storages.values():
            source.copy_(copy)


def op_on_device(name: str, device: str = "cuda") -> Any:
    op = getattr(torch.ops.microspec, name)

    def call(*arguments: Any, **options: Any) -> Any:
        moved = Moved(device)
        there = [moved.there(a) for a in arguments], {k: moved.there(v) for k, v in options.items()}
        # PyTorch then fills new tensors with NaN, which shows results that are not written.
        torch.use_deterministic_algorithms(True)
        try:
            results = op(*there[0], **there[1])
        finally:
            torch.use_deterministic_algorithms(False)
        torch.cuda.synchronize()
        if name.endswith("_"):
            moved.back()
            return None
        return tuple(r.cpu() for r in results) if isinstance(results, tuple) else results.cpu()

    return call


def functions() -> dict[str, Any]:
    assert backends.HAS_CUDA, "the library was built without nvcc: it has no CUDA kernels"
    return {name: op_on_device(name) for name in SCHEMAS}
