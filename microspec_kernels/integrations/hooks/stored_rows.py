# SPDX-License-Identifier: Apache-2.0
"""Read the rows of an LM head from an engine's layer, quantised or not.

Each quantisation, kernel and version of an engine stores a layer's tensors in its own way, some of
them in an order of their own. So nothing here goes by the name of a class: the tensors' dtypes and
shapes say how they may have to be read, and the engine's own kernel says which reading is right.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from microspec_kernels.reference import dequantise_rows

PROBES = 8
COMPARED_ROWS = 1024  # of the first and the last tile of swizzled scales, and rows in between
LARGEST_ERROR = 0.02
"""Relative to the engine's logits. In a bf16 result rounding is 0.002; the scales of another block
of 16 columns are 0.1 and more away, even where all weights are drawn from one normal distribution.
"""
LARGEST_GAIN = 2.0
"""The engine's kernel may quantise the probes by a static scale, which multiplies all logits."""


@dataclass(frozen=True)
class StoredRows:
    """Rows as :class:`~microspec_kernels.EngineHead` reads them.

    Attributes:
        layer: the engine's layer that stores them.
        weight: [R, D], or [R, D/2] of 4-bit rows; shares the layer's memory.
        make_scale: returns the rows' scales from the layer's present tensors; None for rows that
            are not quantised.
        weight_scale: what `make_scale` returned at first, at a fixed address.
        logit_scale: multiplies the logits.
    """

    layer: Any
    weight: Tensor
    make_scale: Callable[[], Tensor] | None = None
    weight_scale: Tensor | None = None
    logit_scale: float = 1.0

    def moved(self) -> bool:
        """Return whether the layer's weight lies at another address now."""
        return bool(self.layer.weight.data_ptr() != self.weight.data_ptr())

    def refresh(self) -> None:
        """Update the scales after the layer's tensors changed in place."""
        if self.make_scale is not None and self.weight_scale is not None:
            scale = self.make_scale()
            if scale.data_ptr() != self.weight_scale.data_ptr():  # else it is the layer's own
                self.weight_scale.copy_(scale)


@torch.inference_mode(False)  # a tensor made in inference mode cannot be updated outside it
@torch.no_grad()
def stored_rows(
    layer: Any, rows: int, columns: int, dtype: torch.dtype, apply: Callable[[Tensor], Tensor]
) -> StoredRows:
    """Find out how a quantised layer stores its rows. Waits for the device.

    Args:
        layer: the engine's layer, with `weight` and its scales. Rows may have `dtype`; fp8 and int8
            rows one scale each or one for all; nvfp4 rows an e4m3 scale for each 16 columns, in
            the columns' order or in tiles of 128 x 4, and one for all.
        rows: R, the rows to read, without padding.
        columns: D.
        dtype: dtype of the hidden states.
        apply: the engine's own product of hidden states [n, D] with the layer: [n, R or more].

    Raises:
        ValueError: no reading of the tensors gives the engine's logits.
    """
    device = layer.weight.device
    generator = torch.Generator().manual_seed(0)
    # Of ones and minus ones, quantisation is exact up to one factor.
    signs = torch.randint(0, 2, (PROBES, columns), generator=generator)
    probes = (2 * signs - 1).to(device, dtype)
    compared = torch.linspace(0, rows - 1, min(rows, COMPARED_ROWS), dtype=torch.float64)
    compared = compared.round().long().to(device)
    wanted = apply(probes)[:, :rows].float()[:, compared]
    sound = wanted.isfinite().all(0)  # EngineHead finds rows with NaN or infinity by itself
    compared, wanted = compared[sound], wanted[:, sound]
    for candidate in _candidates(layer, rows, columns, dtype):
        logits = candidate.logit_scale * (probes.float() @ _values(candidate, compared).T)
        gain = float((wanted * logits).sum() / logits.square().sum())
        error = float((wanted - gain * logits).norm() / wanted.norm())
        if error <= LARGEST_ERROR and 1 / LARGEST_GAIN <= gain <= LARGEST_GAIN:
            return candidate
    shape, name = list(layer.weight.shape), str(layer.weight.dtype).removeprefix("torch.")
    raise ValueError(
        f"{type(getattr(layer, 'quant_method', None)).__name__} with weight {name} {shape}, which "
        "is not fp8, int8 or nvfp4 in the order of the rows"
    )


def _values(stored: StoredRows, index: Tensor) -> Tensor:
    rows, scale = _take(stored.weight, index), None
    if stored.weight_scale is not None:
        scale = _take(stored.weight_scale, index)
        scale = scale[:, None] if scale.dim() == 1 else scale
    return dequantise_rows(rows, scale, torch.float32)


def _take(tensor: Tensor, index: Tensor) -> Tensor:
    # PyTorch cannot index tensors of some dtypes of one byte.
    if tensor.element_size() == 1:
        return tensor.view(torch.uint8)[index].view(tensor.dtype)
    return tensor[index]


def _candidates(layer: Any, rows: int, columns: int, dtype: torch.dtype) -> Iterator[StoredRows]:
    weight = layer.weight.detach()
    if weight.dim() != 2:
        return
    if weight.dtype == dtype and _holds(weight, rows, columns):
        yield StoredRows(layer, weight[:rows, :columns])
    if weight.dtype in (torch.float8_e4m3fn, torch.int8):
        for oriented in (weight, weight.t()):
            if _holds(oriented, rows, columns):
                for make in _row_scales(layer, rows):
                    yield StoredRows(layer, oriented[:rows, :columns], make, make())
    if weight.dtype == torch.uint8 and columns % 16 == 0 and _holds(weight, rows, columns // 2):
        codes = weight[:rows, : columns // 2].view(torch.float4_e2m1fn_x2)
        for make in _block_scales(layer, rows, columns // 16):
            for scale in _tensor_scales(layer):
                yield StoredRows(layer, codes, make, make(), scale)


def _holds(weight: Tensor, rows: int, columns: int) -> bool:
    return weight.size(0) >= rows and weight.size(1) >= columns and weight.stride(1) == 1


def _row_scales(layer: Any, rows: int) -> Iterator[Callable[[], Tensor]]:
    scale = getattr(layer, "weight_scale", None)
    if not isinstance(scale, Tensor):
        return
    if scale.numel() == 1:
        yield lambda: layer.weight_scale.detach().float().flatten().repeat(rows)
    elif max(scale.shape) == scale.numel() >= rows:
        yield lambda: layer.weight_scale.detach().float().flatten()[:rows].contiguous()


def _block_scales(layer: Any, rows: int, blocks: int) -> Iterator[Callable[[], Tensor]]:
    for name in ("weight_scale_interleaved", "weight_scale"):
        scale = getattr(layer, name, None)
        if not isinstance(scale, Tensor) or scale.element_size() != 1:
            continue
        if scale.dim() == 2 and scale.size(0) >= rows and scale.size(1) >= blocks:
            yield partial(_in_order, layer, name, rows, blocks)
        if scale.numel() == _padded(rows, 128) * _padded(blocks, 4):
            yield partial(_from_tiles, layer, name, rows, blocks)


def _in_order(layer: Any, name: str, rows: int, blocks: int) -> Tensor:
    return _e4m3(layer, name)[:rows, :blocks].contiguous()


def _from_tiles(layer: Any, name: str, rows: int, blocks: int) -> Tensor:
    return unswizzled(_e4m3(layer, name), rows, blocks)


def _e4m3(layer: Any, name: str) -> Tensor:
    scale: Tensor = getattr(layer, name)
    return scale.detach().view(torch.float8_e4m3fn)


def _tensor_scales(layer: Any) -> Iterator[float]:
    for name in ("weight_global_scale", "weight_scale_2"):
        scale = getattr(layer, name, None)
        if isinstance(scale, Tensor) and scale.numel() > 0:
            value = float(scale.detach().float().max())
            if value > 0:
                yield value
                yield 1 / value


def unswizzled(scale: Tensor, rows: int, blocks: int) -> Tensor:
    """Undo the engines' `swizzle_blockscale`.

    Args:
        scale: R' · B' elements of any shape, where R' and B' are R and B rounded up to multiples of
            128 and 4. Tiles of 128 x 4 scales lie one after the other; in a tile, row r + 32 q
            follows row r - 1 + 32 q by 16 scales and row r + 32 (q - 1) by 4.
        rows, blocks: R and B.

    Returns:
        [R, B], contiguous.
    """
    tiles = scale.reshape(-1, _padded(blocks, 4) // 4, 32, 4, 4)  # row tile, column tile, r, q, b
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1, _padded(blocks, 4))[:rows, :blocks].contiguous()


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
