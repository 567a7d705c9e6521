# SPDX-License-Identifier: Apache-2.0
"""Wrong calls raise the right error, with the same text from every backend, and write nothing."""

from typing import Any

import pytest
import torch
from bad_calls import BAD_CALLS, ON_ONE_DEVICE, Arguments, BadCall, zeros
from schemas import SCHEMAS
from torch import Tensor

import microspec_kernels


def call(op: Any, arguments: Arguments) -> Any:
    """Call with the schema's positional arguments by name, which wrappers and ops both accept."""
    return op(**arguments)


def wrapper(bad: BadCall) -> Any:
    return getattr(microspec_kernels, bad.op)


def storages(arguments: Arguments) -> dict[str, bytes]:
    """Return every byte of every tensor's storage, gaps included."""
    return {
        name: bytes(value.untyped_storage().tolist())
        for name, value in arguments.items()
        if isinstance(value, Tensor)
    }


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bad", BAD_CALLS, ids=str)
def test_python_error_and_nothing_written(bad: BadCall, backend: str) -> None:
    microspec_kernels.backend(backend)
    arguments = bad.arguments()
    before = storages(arguments)
    with pytest.raises(bad.error) as raised:
        call(wrapper(bad), arguments)
    assert str(raised.value) == bad.message
    assert type(raised.value) is bad.error
    assert storages(arguments) == before


@pytest.mark.parametrize("bad", BAD_CALLS, ids=str)
def test_op_raises_runtime_error_with_the_same_text(bad: BadCall) -> None:
    with pytest.raises(RuntimeError) as raised:
        call(getattr(torch.ops.microspec, bad.op), bad.arguments())
    assert str(raised.value) == f"{bad.error.__name__}: {bad.message}"


@pytest.mark.parametrize("bad", [bad for bad in BAD_CALLS if not bad.values], ids=str)
def test_fake_raises_the_same(bad: BadCall) -> None:
    meta = {n: v.to("meta") if isinstance(v, Tensor) else v for n, v in bad.arguments().items()}
    for name, value in meta.items():  # .to() packs strided tensors
        if isinstance(value, Tensor):
            source = bad.arguments()[name]
            meta[name] = value.as_strided(source.shape, source.stride()) if source.dim() else value
    with pytest.raises(bad.error) as raised:
        call(wrapper(bad), meta)
    assert str(raised.value) == bad.message


@pytest.mark.parametrize(
    ("op", "good", "argument"),
    [(op, good, argument) for op, good, arguments in ON_ONE_DEVICE for argument in arguments],
)
def test_arguments_on_two_devices(op: str, good: Any, argument: str) -> None:
    """A tensor on "meta" stands for one on a GPU, and every machine has it.

    Through the dispatcher such a call reaches the fake. A tensor of an accelerator would reach the
    compiled kernel instead; this test calls the kernel's checks past the dispatcher.
    """
    arguments = {**good(), argument: good()[argument].to("meta")}
    message = f"microspec::{op}: {argument}: expected a tensor on cpu, got one on meta"
    with pytest.raises(ValueError, match="expected a tensor on cpu") as raised:
        call(getattr(microspec_kernels, op), arguments)
    assert str(raised.value) == message
    overload = getattr(torch.ops.microspec, op).default
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    with pytest.raises(RuntimeError) as compiled:
        overload.redispatch(cpu, **arguments)
    assert str(compiled.value) == f"ValueError: {message}"


@pytest.mark.parametrize(
    ("op", "good", "argument"),
    [
        (op, good, getattr(torch.ops.microspec, op).default._schema.arguments[0].name)
        for op, good, _ in ON_ONE_DEVICE
    ],
)
def test_compiled_kernel_refuses_another_device(op: str, good: Any, argument: str) -> None:
    """Only a call past the dispatcher can pass the first tensor on a wrong device."""
    arguments = {**good(), argument: good()[argument].to("meta")}
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    with pytest.raises(RuntimeError) as raised:
        getattr(torch.ops.microspec, op).default.redispatch(cpu, **arguments)
    message = f"microspec::{op}: {argument}: expected a tensor on cpu or cuda, got one on meta"
    assert str(raised.value) == f"ValueError: {message}"


def test_good_calls_of_the_table_are_good() -> None:
    """Otherwise the table's rows would prove nothing."""
    for bad in BAD_CALLS:
        call(wrapper(bad), bad.good())
    for op, good, _ in ON_ONE_DEVICE:
        call(getattr(microspec_kernels, op), good())


def test_every_argument_appears_in_the_table() -> None:
    for op in SCHEMAS:
        schema = getattr(torch.ops.microspec, op).default._schema
        tested = {bad.argument for bad in BAD_CALLS if bad.op == op}
        # Any bool is valid.
        untested = {a.name for a in schema.arguments} - tested
        assert untested == {a.name for a in schema.arguments if str(a.type) == "bool"}


@pytest.mark.parametrize(
    "text",
    [
        "argument",
        "CUDA error: an illegal memory access was encountered",
        "ValueError: axes don't match array",
        "KeyError: microspec",
        "[enforce fail at alloc_cpu.cpp:127] ValueError: microspec::sparse_head: k: too large",
    ],
)
@pytest.mark.parametrize(("op", "good"), [(op, good) for op, good, _ in ON_ONE_DEVICE])
def test_errors_that_are_not_ours_pass_through(
    op: str, good: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same error passes through, even if its text contains one of our words."""
    foreign = RuntimeError(text)

    def fails(*_: Any, **__: Any) -> None:
        raise foreign

    monkeypatch.setattr(torch.ops.microspec, op, fails)
    with pytest.raises(RuntimeError) as raised:
        call(getattr(microspec_kernels, op), good())
    assert raised.value is foreign and str(foreign) == text


def test_pytorch_names_what_is_no_tensor() -> None:
    message = r"(?s)sparse_head\(\).*'hidden'.*but instead found.*str"
    with pytest.raises(RuntimeError, match=message):
        microspec_kernels.sparse_head("hidden", zeros(50, 8), zeros(6), 4)  # type: ignore[arg-type]
