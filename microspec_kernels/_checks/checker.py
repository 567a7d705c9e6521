# SPDX-License-Identifier: Apache-2.0
"""Checks of one argument, which the checks of every family share."""

from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from .dtypes import E2M1, FLOATS, FOUR_BIT, INT4, QUANTISED, dtype_name


def _extent(tensor: Tensor | None) -> tuple[int, int]:
    """Return the addresses of the first byte and of the byte after the last; (0, 0) if empty."""
    if tensor is None or tensor.numel() == 0:
        return 0, 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size()


class Checker:
    """Checks of one op on one device. Every error names the op and the argument.

    A wrong dtype raises TypeError, a wrong id IndexError, and anything else ValueError.
    """

    def __init__(self, op: str, device: torch.device) -> None:
        self.op = op
        self.device = device

    def fail(self, kind: type[Exception], argument: str, expected: str, got: object) -> NoReturn:
        raise kind(f"microspec::{self.op}: {argument}: expected {expected}, got {got}")

    def value(self, ok: bool, argument: str, expected: str, got: object) -> None:
        if not ok:
            self.fail(ValueError, argument, expected, got)

    def dtype(
        self, tensor: Tensor, argument: str, expected: Sequence[torch.dtype], text: str
    ) -> None:
        if tensor.dtype not in expected:
            self.fail(TypeError, argument, text, dtype_name(tensor.dtype))

    def int32(self, tensor: Tensor, argument: str) -> None:
        self.dtype(tensor, argument, [torch.int32], "int32")

    def int64(self, tensor: Tensor, argument: str) -> None:
        self.dtype(tensor, argument, [torch.int64], "int64")

    def integer(self, tensor: Tensor, argument: str) -> None:
        self.dtype(tensor, argument, [torch.int32, torch.int64], "int32 or int64")

    def floating(self, tensor: Tensor, argument: str) -> None:
        self.dtype(tensor, argument, FLOATS, "float32, float16 or bfloat16")

    def rows(self, tensor: Tensor, argument: str, reference: torch.dtype, *, e2m1: bool) -> None:
        """Require reference's dtype or a quantised one; e2m1 only where rows are not made of it."""
        quantised = [torch.float8_e4m3fn, torch.int8, INT4, *([E2M1] if e2m1 else [])]
        names = [dtype_name(dtype) for dtype in (reference, *quantised)]
        text = f"{', '.join(names[:-1])} or {names[-1]}"
        self.dtype(tensor, argument, [reference, *quantised], text)

    def group_dim(self, rows: torch.dtype, dim: int, argument: str) -> None:
        group, _ = FOUR_BIT[rows]
        expected = f"D a multiple of {group} for {dtype_name(rows)} rows"
        self.value(dim % group == 0, argument, expected, dim)

    def shape(self, tensor: Tensor, argument: str, expected: Sequence[int]) -> None:
        if tensor.dim() != len(expected) or any(
            got != want for got, want in zip(tensor.shape, expected, strict=True)
        ):
            self.fail(ValueError, argument, f"shape {list(expected)}", list(tensor.shape))

    def contiguous(self, tensor: Tensor, argument: str) -> None:
        if not tensor.is_contiguous():
            self.fail(
                ValueError, argument, "a contiguous tensor", f"strides {list(tensor.stride())}"
            )

    def on_device(self, tensor: Tensor, argument: str) -> None:
        if tensor.device != self.device:
            self.fail(ValueError, argument, f"a tensor on {self.device}", f"one on {tensor.device}")

    def unit_inner_stride(self, tensor: Tensor, argument: str) -> None:
        if tensor.size(-1) > 1 and tensor.stride(-1) != 1:
            got = f"stride {tensor.stride(-1)}"
            self.fail(ValueError, argument, "stride 1 in the last dimension", got)

    def disjoint(
        self, written: Mapping[str, Tensor | None], read: Mapping[str, Tensor | None]
    ) -> None:
        """Check that written tensors share no memory with other arguments. Not for fake tensors."""
        extents = {name: _extent(tensor) for name, tensor in {**written, **read}.items()}
        checked: list[str] = []
        for name in written:
            begin, end = extents[name]
            for other in (*checked, *read):
                if begin < extents[other][1] and extents[other][0] < end:
                    self.fail(ValueError, name, "memory of its own", f"memory shared with {other}")
            checked.append(name)

    def row_scale(
        self, scale: Tensor | None, argument: str, rows: torch.dtype, shape: Sequence[int], dim: int
    ) -> None:
        """Check the scales of rows [*shape, dim]."""
        group, kind = FOUR_BIT.get(rows, (0, torch.float32))
        if rows not in (*QUANTISED, *FOUR_BIT):
            wanted = "None for rows that are not int8, float8_e4m3fn, uint8 or float4_e2m1fn_x2"
            self.value(scale is None, argument, wanted, "a tensor")
        elif scale is None:
            each = (
                f"{group} columns for {dtype_name(rows)}"
                if group
                else "row for int8 or float8_e4m3fn"
            )
            self.fail(ValueError, argument, f"a scale per {each} rows", "None")
        else:
            self.dtype(scale, argument, [kind], dtype_name(kind))
            self.shape(scale, argument, (*shape, dim // group) if group else shape)
            self.contiguous(scale, argument)
            self.on_device(scale, argument)

    def ids(self, ids: Tensor, argument: str, vocab_size: int, noun: str, where: str) -> None:
        """Check that every value is in [0, vocab_size) or -1. Not for fake tensors."""
        wide = ids.long()  # int32 cannot hold a vocab_size of 2^31
        bad = ((wide < -1) | (wide >= vocab_size)).flatten().nonzero()
        if len(bad):
            position = int(bad[0])
            got = f"{int(ids.flatten()[position])} at {where} {position}"
            self.fail(IndexError, argument, f"{noun} in [0, {vocab_size}) or -1", got)


def groups_and_capacity(check: Checker, active_ids: Tensor) -> tuple[int, int]:
    fits = active_ids.dim() == 1 or (active_ids.dim() == 2 and active_ids.size(0) > 0)
    check.value(fits, "active_ids", "shape [K] or [G, K], G >= 1", list(active_ids.shape))
    num_groups = active_ids.size(0) if active_ids.dim() == 2 else 1
    return num_groups, active_ids.size(-1)


def numbers(check: Checker, tensor: Tensor, argument: str, count: int) -> None:
    """Check int32 or int64 [count]."""
    check.integer(tensor, argument)
    check.shape(tensor, argument, (count,))
    check.contiguous(tensor, argument)
    check.on_device(tensor, argument)
