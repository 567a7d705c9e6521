# SPDX-License-Identifier: Apache-2.0
"""Backends for the op tests. Each one serves ``torch.ops.microspec.*`` for CPU tensors.

A test or its module names backends with ``@pytest.mark.backends(...)`` and runs once for each.
Without the mark a test runs over the compiled CPU library alone.
"""

import contextlib
import functools
import inspect
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from schemas import SCHEMAS
from torch import Tensor

import microspec_kernels

CPU = ("cpu",)
# Triton runs on CPU tensors if its interpreter is chosen before the import, as `make test-triton`
# does. The interpreter then replaces all other device backends.
TRITON = ("triton",) if os.environ.get("TRITON_INTERPRET") == "1" else ()
EMULATED = TRITON or ("emulation-sm80", "emulation-sm90")
CUDA = () if TRITON else ("cuda",)
ARM = () if TRITON else ("arm-neon", "arm-neonbf16")
NO_DEVICE = "no CUDA device"  # a skip reason
# Backends with kernels of this repository.
COMPILED = (*CPU, *ARM, *EMULATED, *CUDA)
# This device has less shared memory than the other two, like desktop GPUs.
SMALL = () if TRITON else ("emulation-sm89",)
ALL = (*COMPILED, "reference")

NO_ARM = "no aarch64-linux-gnu-g++ or no qemu-aarch64"


def slow_interpreted(*values: Any) -> Any:
    """Return a parameter for parametrize whose case is slow over the Triton kernels."""
    return pytest.param(*values, marks=pytest.mark.slow_interpreted)


@dataclass(frozen=True)
class Backend:
    examples: int | None = None  # limit for a hypothesis test; None: no limit beyond its settings
    marks: tuple[pytest.MarkDecorator, ...] = ()  # marks for every test over this backend

    @contextlib.contextmanager
    def serving(self, seed: int) -> Iterator[None]:
        """Serve the ops inside the context. ``seed`` identifies the test."""
        yield


@dataclass(frozen=True)
class Named(Backend):
    """A backend that users can choose too."""

    name: str = "cpu"

    @contextlib.contextmanager
    def serving(self, seed: int) -> Iterator[None]:
        before = microspec_kernels.backend()
        microspec_kernels.backend(self.name)
        try:
            yield
        finally:
            microspec_kernels.backend(before)


@dataclass(frozen=True)
class Emulated(Backend):
    """The CUDA kernels on an emulated device (csrc/emulation)."""

    examples: int | None = 8
    marks: tuple[pytest.MarkDecorator, ...] = (pytest.mark.emulation,)
    settings: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def serving(self, seed: int) -> Iterator[None]:
        import emulated_ops
        from emulated import load

        load().configure(seed=seed, **self.settings)
        with replaced({name: getattr(emulated_ops, name) for name in SCHEMAS}):
            yield


@dataclass(frozen=True)
class Arm(Backend):
    """The CPU kernels for Arm in qemu. A test skips without the tools; conftest.py counts that."""

    examples: int | None = 20
    marks: tuple[pytest.MarkDecorator, ...] = (pytest.mark.arm,)
    processor: str = "max"
    isa: str = "neon"

    @contextlib.contextmanager
    def serving(self, seed: int) -> Iterator[None]:
        import arm_ops

        if arm_ops.tools_are_missing():
            pytest.skip(NO_ARM)
        with replaced(arm_ops.Ops(self.processor, self.isa).functions()):
            yield


def without_misread(values: Tensor, backend: str) -> Tensor:
    """Replace values that Triton's interpreter reads wrongly, subnormal bf16, by 0."""
    if backend != "triton" or values.dtype != torch.bfloat16:
        return values
    return values.where(values.abs() >= torch.finfo(torch.bfloat16).tiny, 0.0)


@functools.cache
def builtin_names(package: Any) -> list[str]:
    from triton.language import core

    return [name for name, member in inspect.getmembers(package) if core.is_builtin(member)]


def patch_builtins(package: Any, *builder_and_scope: Any) -> None:
    """Do what the interpreter's function does, without its search, a third of a test's time."""
    from triton.language import core
    from triton.runtime import interpreter

    for name in builtin_names(package):
        if core.is_builtin(member := getattr(package, name)):
            interpreter._patch_attr(package, name, member, *builder_and_scope)


@dataclass(frozen=True)
class Interpreted(Backend):
    """The Triton kernels in Triton's interpreter. As on a device, they do not check ids."""

    examples: int | None = 8
    marks: tuple[pytest.MarkDecorator, ...] = (pytest.mark.triton,)

    @contextlib.contextmanager
    def serving(self, seed: int) -> Iterator[None]:
        from triton.runtime import interpreter

        from microspec_kernels import triton_kernels

        # The interpreter copies every storage back from the host. Here source and destination are
        # the same memory, 12 GB in some tests.
        interpreter.GridExecutor._restore_args_dev = lambda *_: None
        interpreter._patch_builtin = patch_builtins
        with replaced({name: getattr(triton_kernels, name) for name in SCHEMAS}):
            yield


@dataclass(frozen=True)
class OnDevice(Backend):
    """The CUDA kernels on a GPU. Without one a test skips; conftest.py counts the skips."""

    marks: tuple[pytest.MarkDecorator, ...] = (pytest.mark.gpu,)

    @contextlib.contextmanager
    def serving(self, seed: int) -> Iterator[None]:
        if not torch.cuda.is_available():
            pytest.skip(NO_DEVICE)
        from gpu import on_device

        with replaced(on_device.functions()):
            yield


@contextlib.contextmanager
def replaced(functions: dict[str, Any]) -> Iterator[None]:
    """Serve the ops for CPU tensors with these functions, by op name, inside the context."""
    library = torch.library.Library("microspec", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name, function in functions.items():
            library.impl(name, function, "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


BACKENDS: dict[str, Backend] = {
    "cpu": Named(),
    "reference": Named(name="reference"),
    "cuda": OnDevice(),
    "triton": Interpreted(),
    # cortex-a72 has no bf16 instructions; the default, max, has every instruction.
    "arm-neon": Arm(processor="cortex-a72", isa="neon"),
    "arm-neonbf16": Arm(isa="neonbf16"),
    "arm-portable": Arm(isa="portable"),
    # One block at a time, threads in order, copies complete at once; cp.async.
    "emulation-sm80": Emulated(
        settings={
            **{"arch": 800, "sms": 3, "block_shared": 163 * 1024, "sm_shared": 164 * 1024},
            **{"order": "in order", "copies": "eager", "resident_blocks": 1},
        }
    ),
    "emulation-sm89": Emulated(
        settings={
            **{"arch": 890, "sms": 3, "block_shared": 99 * 1024, "sm_shared": 100 * 1024},
            **{"order": "shuffled", "copies": "random", "resident_blocks": 1},
        }
    ),
    # Blocks and warps interleave at random, copies complete as late as possible; bulk copies.
    "emulation-sm90": Emulated(
        settings={
            **{"arch": 900, "sms": 3, "block_shared": 227 * 1024, "sm_shared": 228 * 1024},
            **{"order": "shuffled", "copies": "late", "resident_blocks": 3},
        }
    ),
}
