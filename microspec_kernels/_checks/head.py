# SPDX-License-Identifier: Apache-2.0
"""Checks of sparse_head and sparse_logits."""

import math

import torch
from torch import Tensor

from .checker import Checker, groups_and_capacity
from .dtypes import FOUR_BIT, dtype_name

MAX_TOP_K = 128


def head(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    packed: bool,
    group_ids: Tensor | None,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    logit_scale: float,
    softcap: float,
    k: int | None = None,
) -> None:
    """Check the arguments of sparse_head (with ``k``) or sparse_logits, except the ids' values."""
    check = Checker(op, hidden.device)
    if k is not None:
        check.value(1 <= k <= MAX_TOP_K, "k", f"1 <= k <= {MAX_TOP_K}", k)
    check.value(hidden.dim() == 2, "hidden", "shape [M, D]", list(hidden.shape))
    num_groups, capacity = groups_and_capacity(check, active_ids)
    check.int32(active_ids, "active_ids")
    rows, dim = hidden.shape
    check.floating(hidden, "hidden")
    check.rows(weight, "weight", hidden.dtype, e2m1=True)
    columns = dim
    if weight.dtype in FOUR_BIT:
        check.group_dim(weight.dtype, dim, "weight")
        columns = dim // 2
    if not packed:
        fits = weight.dim() == 2 and weight.size(1) == columns
        check.value(fits, "weight", f"shape [V, {columns}]", list(weight.shape))
        scale_shape: tuple[int, ...] = (weight.size(0),)
    else:
        scale_shape = (capacity,) if active_ids.dim() == 1 else (num_groups, capacity)
        check.shape(weight, "weight", (*scale_shape, columns))
    check.row_scale(weight_scale, "weight_scale", weight.dtype, scale_shape, dim)
    single = num_groups == 1 or group_ids is not None or rows == 0
    check.value(single, "group_ids", f"a group per row, as G = {num_groups}", "None")
    if group_ids is not None:
        check.integer(group_ids, "group_ids")
        fits = group_ids.dim() == 1 and (group_ids.size(0) == rows or group_ids.size(0) == 1)
        check.value(fits, "group_ids", f"shape [{rows}] or [1]", list(group_ids.shape))
        check.contiguous(group_ids, "group_ids")
        check.on_device(group_ids, "group_ids")
    if bias is not None:
        allowed = dict.fromkeys([hidden.dtype, torch.float32])
        check.dtype(bias, "bias", [*allowed], " or ".join(map(dtype_name, allowed)))
        check.value(bias.dim() == 1, "bias", "shape [V]", list(bias.shape))
        if not packed:
            check.shape(bias, "bias", (weight.size(0),))
        check.contiguous(bias, "bias")
        check.on_device(bias, "bias")
    check.value(math.isfinite(logit_scale), "logit_scale", "a finite number", f"{logit_scale:g}")
    fits = softcap >= 0 and math.isfinite(softcap)
    check.value(fits, "softcap", "a finite number >= 0", f"{softcap:g}")
    check.unit_inner_stride(hidden, "hidden")
    check.unit_inner_stride(weight, "weight")
    check.contiguous(active_ids, "active_ids")
    check.on_device(weight, "weight")
    check.on_device(active_ids, "active_ids")


def head_ids(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    packed: bool,
    group_ids: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Check the values of active_ids and group_ids for sparse_head and sparse_logits."""
    check = Checker(op, hidden.device)
    vocab_size = weight.size(0) if not packed else bias.size(0) if bias is not None else 2**31
    check.ids(active_ids, "active_ids", vocab_size, "ids", "flat position")
    if group_ids is not None:
        num_groups = active_ids.size(0) if active_ids.dim() == 2 else 1
        check.ids(group_ids, "group_ids", num_groups, "groups", "position")
