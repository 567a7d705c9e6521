# SPDX-License-Identifier: Apache-2.0
"""The function gather_rows_."""

import torch
from torch import Tensor

from .errors import reraise


def gather_rows_(
    slab: Tensor,
    slab_ids: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    *,
    slab_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> None:
    """Copy the rows of changed tokens into a slab, in place.

    Afterwards slab_ids equals active_ids, and each row of the slab holds the row of its token.
    (The op does not check ids on a GPU. An id out of range becomes -1 in slab_ids there.)

    The op neither reads nor writes a row whose id did not change. It quantises the rows of a float
    weight for an int8 or float8_e4m3fn slab: q = round(row / scale), scale = amax / 127 or
    amax / 448 (see :func:`microspec_kernels.reference.quantise_rows`). For a slab of 4-bit rows it
    quantises each group of 32 columns with its own scale, amax / 7 (see
    :func:`microspec_kernels.reference.quantise_int4`).

    Args:
        slab: [K, D] or [G, K, D], contiguous; weight's dtype, or int8 or float8_e4m3fn; or uint8
            [.., D/2] for int4 rows, D a multiple of 32. Rows are not quantised to e2m1: a slab
            float4_e2m1fn_x2 [.., D/2] needs a weight of that dtype.
        slab_ids: int32, shape of active_ids: the token that each row of the slab holds, or -1.
        weight: [V, D], bf16, fp16 or fp32, or int8 or float8_e4m3fn with ``weight_scale``; or 4-bit
            rows uint8 or float4_e2m1fn_x2 [V, D/2] with ``weight_scale``.
        active_ids: int32 [K] or [G, K]; -1 marks an empty slot.
        slab_scale: fp32 [K] or [G, K]; for 4-bit rows bf16 [.., D/32] (int4) or float8_e4m3fn
            [.., D/16] (e2m1); required if the slab is quantised, else None.
        weight_scale: the same of the weight, for its V rows.

    Raises:
        ValueError, TypeError, IndexError: as :func:`sparse_head`. The op then writes nothing.
    """
    try:
        torch.ops.microspec.gather_rows_(
            slab, slab_ids, weight, active_ids, slab_scale=slab_scale, weight_scale=weight_scale
        )
    except RuntimeError as error:
        reraise(error)
