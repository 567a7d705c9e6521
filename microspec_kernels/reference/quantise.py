# SPDX-License-Identifier: Apache-2.0
"""The rows of quantised weights and slabs: how they are made, and what they stand for."""

import torch
from torch import Tensor

from .._checks import FOUR_BIT, INT4, INT4_GROUP

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
LARGEST_INT4 = 7.0
# The values of e2m1's codes 0 to 7; codes 8 to 15 are their negatives.
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def int4_columns(rows: Tensor) -> Tensor:
    """Unpack uint8 [.., D/2] to int8 [.., D], -8 to 7; the even column is in the low half."""
    halves = torch.stack((rows & 15, rows >> 4), -1).flatten(-2)
    return (halves ^ 8).to(torch.int8) - 8


def e2m1_columns(rows: Tensor) -> Tensor:
    """Unpack float4_e2m1fn_x2 [.., D/2] to fp32 [.., D]; the even column is in the low half."""
    codes = rows.view(torch.uint8)
    halves = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).long()
    values = torch.tensor(E2M1_VALUES, device=rows.device)
    return torch.cat((values, -values))[halves]


def dequantise_rows(rows: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the values of rows [N, D] in ``dtype``; of 4-bit rows [N, D/2].

    Args:
        rows: the rows.
        scale: fp32 [N, 1]; for 4-bit rows bf16 [N, D/32] (uint8) or float8_e4m3fn [N, D/16]
            (float4_e2m1fn_x2); None for rows that are not quantised.
        dtype: dtype of the result. In fp32 and fp64 the values of 4-bit rows are exact.
    """
    if rows.dtype in FOUR_BIT:
        assert scale is not None
        group, _ = FOUR_BIT[rows.dtype]
        columns = int4_columns(rows) if rows.dtype == INT4 else e2m1_columns(rows)
        return columns.to(dtype) * scale.to(dtype).repeat_interleave(group, 1)
    return rows.to(dtype) if scale is None else rows.to(dtype) * scale.to(dtype)


def quantise_int4(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise rows [N, D] to int4, so that each column ≈ q · scale of its group of 32 columns.

    scale is amax / 7 rounded to bf16, half to even; q is the column divided by that scale, rounded
    half to even, and so from -7 to 7. The rule for tiny and for broken values is that of
    :func:`quantise_rows`, for each group by itself.

    Returns:
        q uint8 [N, D/2], the even column in the low half, and scale bf16 [N, D/32].
    """
    values = rows.float().view(len(rows), rows.size(1) // INT4_GROUP, INT4_GROUP)
    scale = _scales(values, LARGEST_INT4).to(torch.bfloat16)
    q = _quotients(values, scale.float()).round().to(torch.int8).view(torch.uint8).flatten(1) & 15
    return q[:, ::2] | (q[:, 1::2] << 4), scale


def _scales(values: Tensor, largest: float) -> Tensor:
    """Return the scales [..] of values [.., n]."""
    scale = values.abs().amax(-1) / largest
    # amax propagates NaN. This comparison turns it into 1, and the next line into NaN again.
    scale = torch.where(scale >= torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    return torch.where(values.isfinite().all(-1), scale, torch.full_like(scale, float("nan")))


def _quotients(values: Tensor, scale: Tensor) -> Tensor:
    """Return values [.., n] / scale [..]; 0 where scale is NaN."""
    scale = scale[..., None]
    return torch.where(scale.isnan(), torch.zeros_like(values), values / scale)


def quantise_rows(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise rows [N, D] to int8 or float8_e4m3fn, so that row ≈ q · scale.

    scale = amax / (127 or 448); rounding is half to even. A row whose scale would be below the
    smallest normal fp32, such as a row of zeros, gets scale 1. A row with a NaN or an infinity gets
    scale NaN and q = 0.

    Returns:
        q [N, D] in ``dtype`` and scale fp32 [N].
    """
    values = rows.float()
    scale = _scales(values, LARGEST[dtype])
    q = _quotients(values, scale)
    if dtype == torch.int8:
        q = q.round().clamp(-127, 127)
    return q.to(dtype), scale
