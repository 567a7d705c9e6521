# SPDX-License-Identifier: Apache-2.0
"""Checks of gather_rows_."""

from torch import Tensor

from .checker import Checker, groups_and_capacity
from .dtypes import E2M1, FOUR_BIT, QUANTISED, dtype_name


def gather(
    slab: Tensor,
    slab_ids: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    slab_scale: Tensor | None,
    weight_scale: Tensor | None,
) -> Checker:
    """Check the arguments of gather_rows_, except the ids' values."""
    check = Checker("gather_rows_", slab.device)
    num_groups, capacity = groups_and_capacity(check, active_ids)
    check.value(weight.dim() == 2, "weight", "shape [V, D]", list(weight.shape))
    check.int32(active_ids, "active_ids")
    check.int32(slab_ids, "slab_ids")
    ids_shape = (capacity,) if active_ids.dim() == 1 else (num_groups, capacity)
    check.shape(slab_ids, "slab_ids", ids_shape)
    if weight.dtype in (*QUANTISED, *FOUR_BIT):
        check.dtype(slab, "slab", [weight.dtype], dtype_name(weight.dtype))
    else:
        check.floating(weight, "weight")
    check.rows(slab, "slab", weight.dtype, e2m1=weight.dtype == E2M1)
    dim = weight.size(1) * (2 if weight.dtype in FOUR_BIT else 1)
    check.shape(slab, "slab", (*ids_shape, dim // 2 if slab.dtype in FOUR_BIT else dim))
    if slab.dtype in FOUR_BIT:
        check.group_dim(slab.dtype, dim, "weight")
    check.row_scale(weight_scale, "weight_scale", weight.dtype, (weight.size(0),), dim)
    check.row_scale(slab_scale, "slab_scale", slab.dtype, ids_shape, dim)
    check.unit_inner_stride(weight, "weight")
    # With a slab on a GPU, the weight may lie in pinned host memory. The compiled op checks that.
    if slab.device.type != "cuda" or weight.device.type != "cpu":
        check.on_device(weight, "weight")
    for tensor, name in ((slab, "slab"), (slab_ids, "slab_ids"), (active_ids, "active_ids")):
        check.contiguous(tensor, name)
        check.on_device(tensor, name)
    return check
