# SPDX-License-Identifier: Apache-2.0
"""Quantised LM heads as the engines' layers store them, and the engines' product with them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from microspec_kernels import reference

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


@dataclass
class Method:
    """A quant_method: `apply` multiplies by the values, whatever the layer's layout.

    `static` is a scale by which the engine's kernel quantises its activations to fp8.
    """

    values: Tensor
    static: float | None = None
    calls: list[Any] = field(default_factory=list)

    def apply(self, layer: Any, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        self.calls.append(hidden)
        states = hidden.float()
        if self.static is not None:
            states = (states / self.static).to(torch.float8_e4m3fn).float() * self.static
        logits = (states @ self.values.T).to(hidden.dtype)
        return logits if bias is None else logits + bias


def swizzled(scale: Tensor) -> Tensor:
    """The engines' swizzle_blockscale, element by element."""
    rows, blocks = scale.shape
    height, width = -(-rows // 128) * 128, -(-blocks // 4) * 4
    flat = torch.zeros(height * width)
    for row in range(rows):
        for block in range(blocks):
            tile = row // 128 * (width // 4) + block // 4
            place = tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4
            flat[place] = scale[row, block].float()
    return flat.view(height, width).to(torch.float8_e4m3fn)


def nvfp4(rows: Tensor) -> tuple[Tensor, Tensor, float, Tensor]:
    """Quantise rows [R, D]: codes uint8, scales e4m3 [R, D/16], their factor, and the values."""
    blocks = rows.unflatten(1, (-1, 16))
    factor = float(rows.abs().max()) / (6 * 448)
    scale = (blocks.abs().amax(-1) / 6 / factor).to(torch.float8_e4m3fn)
    quotients = blocks / (scale.float() * factor)[..., None]
    code = (quotients.abs()[..., None] - E2M1).abs().argmin(-1)
    values = (E2M1[code] * quotients.sign() * (scale.float() * factor)[..., None]).flatten(1)
    code = (code + 8 * (quotients < 0)).flatten(1).to(torch.uint8)
    return code[:, ::2] | code[:, 1::2] << 4, scale, factor, values


def layer(values: Tensor, static: float | None = None, **tensors: Any) -> Any:
    return SimpleNamespace(quant_method=Method(values, static), **tensors)


def padded(tensor: Tensor, rows: int, columns: int) -> Tensor:
    whole = torch.zeros(rows, columns, dtype=torch.uint8).view(tensor.dtype)
    whole.view(torch.uint8)[: tensor.size(0), : tensor.size(1)] = tensor.view(torch.uint8)
    return whole


def eight_bits(dtype: torch.dtype) -> Callable[[Tensor], Any]:
    """vLLM's and SGLang's fp8 and int8: transposed, with a scale for each row."""

    def stored(rows: Tensor) -> Any:
        codes, scale = reference.quantise_rows(rows, dtype)
        values = codes.float() * scale[:, None]
        return layer(values, weight=codes.t(), weight_scale=scale[:, None])

    return stored


def one_scale(rows: Tensor) -> Any:
    """ModelOpt's fp8: rows with one scale for all, and a static scale for the activations."""
    scale = rows.abs().max() / 448
    codes = (rows / scale).to(torch.float8_e4m3fn)
    return layer(codes.float() * scale, 0.3, weight=codes, weight_scale=scale.view(1))


def checkpoint_order(rows: Tensor) -> Any:
    """vLLM's nvfp4 on its emulation kernel."""
    codes, scale, factor, values = nvfp4(rows)
    return layer(values, weight=codes, weight_scale=scale, weight_global_scale=torch.tensor(factor))


def cutlass(rows: Tensor) -> Any:
    """vLLM's nvfp4 on CUTLASS: swizzled scales, rows and columns padded to multiples of 32."""
    codes, scale, factor, values = nvfp4(rows)
    codes = padded(codes, -(-len(rows) // 32) * 32, -(-codes.size(1) // 16) * 16)
    return layer(
        values,
        weight=codes,
        weight_scale=swizzled(scale),
        weight_global_scale=torch.tensor([factor]),
    )


def fbgemm(rows: Tensor) -> Any:
    """vLLM's nvfp4 on FBGEMM: the swizzled scales as bytes, in one dimension."""
    made = cutlass(rows)
    made.weight_scale = made.weight_scale.view(torch.uint8).view(-1)
    return made


def interleaved(rows: Tensor) -> Any:
    """SGLang's nvfp4: swizzled scales under a name of their own, and ModelOpt's name of the factor.

    The checkpoint's scales are a parameter that SGLang has reused for something else.
    """
    codes, scale, factor, values = nvfp4(rows)
    return layer(
        values,
        weight=codes,
        weight_scale=scale.view(torch.uint8).flip(0).view(scale.dtype),
        weight_scale_interleaved=swizzled(scale),
        weight_scale_2=torch.tensor([factor, factor / 2]),
    )


def reciprocal(rows: Tensor) -> Any:
    """The factor as compressed-tensors stores it in a checkpoint."""
    made = checkpoint_order(rows)
    made.weight_global_scale = 1 / made.weight_global_scale
    return made


READABLE = {
    "fp8": eight_bits(torch.float8_e4m3fn),
    "int8": eight_bits(torch.int8),
    "fp8, one scale": one_scale,
    "nvfp4": checkpoint_order,
    "nvfp4, CUTLASS": cutlass,
    "nvfp4, FBGEMM": fbgemm,
    "nvfp4, SGLang": interleaved,
    "nvfp4, reciprocal": reciprocal,
}
