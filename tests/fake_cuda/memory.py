# SPDX-License-Identifier: Apache-2.0
"""Marks on storages: which tensors are on the pretended device, and which are in pinned memory."""

from typing import Any

import torch
from torch import Tensor

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_real_device = torch._C.TensorBase.device.__get__  # type: ignore[attr-defined]


class FakeCudaError(RuntimeError):
    """What a GPU, or PyTorch on a GPU, would have refused."""


def storage_of(tensor: Tensor) -> Any:
    """Return a tensor's storage, or None if it has none, as a sparse tensor."""
    with torch._C.DisableTorchFunction():
        try:
            return tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return None


def on_cuda(tensor: Tensor) -> bool:
    return getattr(storage_of(tensor), "fake_cuda", False)


def is_pinned(tensor: Tensor) -> bool:
    return getattr(storage_of(tensor), "fake_pinned", False)


def device_of(tensor: Tensor) -> torch.device:
    return CUDA if on_cuda(tensor) else _real_device(tensor)


def mark(tensor: Tensor, *, cuda: bool = False, pinned: bool = False) -> Tensor:
    """Mark the storage of a new tensor."""
    storage = storage_of(tensor)
    if storage is not None:
        storage.fake_cuda, storage.fake_pinned = cuda, pinned
    return tensor


def as_device(value: object) -> torch.device | None:
    """Return the device that an argument names, or None if it names none.

    Raises:
        FakeCudaError: a second GPU.
    """
    if isinstance(value, str):
        try:
            value = torch.device(value)
        except RuntimeError:
            return None
    elif isinstance(value, int):
        value = torch.device("cuda", value)
    if not isinstance(value, torch.device):
        return None
    if value.type == "cuda" and value.index not in (None, 0):
        raise FakeCudaError(f"CUDA error: invalid device ordinal: {value}")
    return value


class Generator(torch._C.Generator):
    """A CPU's generator that remembers for which device it was made."""

    def __new__(cls, device: str | torch.device = "cpu") -> "Generator":
        return super().__new__(cls, "cpu")

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._device = CUDA if torch.device(device).type == "cuda" else CPU

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._device


def new_storage(cls: type, *args: Any, device: Any = None, **options: Any) -> Any:
    """Stand in for ``torch.UntypedStorage.__new__``."""
    wanted = as_device(device)
    there = wanted is not None and wanted.type == "cuda"
    if device is not None:
        options["device"] = "cpu" if there else device
    storage = torch._C.StorageBase.__new__(cls, *args, **options)
    storage.fake_cuda = there
    return storage
