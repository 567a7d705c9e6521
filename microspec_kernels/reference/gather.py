# SPDX-License-Identifier: Apache-2.0
"""The meaning of gather_rows_."""

from functools import partial

from torch import Tensor

from .._checks import INT4
from .indexing import put_rows, rows_at
from .quantise import quantise_int4, quantise_rows


def gather_rows_(
    slab: Tensor,
    slab_ids: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    *,
    slab_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> None:
    """Copy or quantise the rows of the slots whose id changed, in place. Keep the other rows."""
    changed = (slab_ids != active_ids).flatten().nonzero().flatten()
    tokens = active_ids.flatten()[changed].long()
    slots, tokens = changed[tokens >= 0], tokens[tokens >= 0]
    at = tokens.to(weight.device)  # the weight may lie in host memory
    rows = rows_at(weight, at).to(slab.device)
    scale = None if weight_scale is None else rows_at(weight_scale, tokens)
    if slab.dtype != weight.dtype:
        quantise = quantise_int4 if slab.dtype == INT4 else partial(quantise_rows, dtype=slab.dtype)
        rows, scale = quantise(rows)
    put_rows(slab.view(-1, slab.size(-1)), slots, rows)
    if slab_scale is not None and scale is not None:
        put_rows(slab_scale.view(active_ids.numel(), *scale.shape[1:]), slots, scale)
    slab_ids.copy_(active_ids)
