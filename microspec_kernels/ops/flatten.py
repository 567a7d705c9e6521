# SPDX-License-Identifier: Apache-2.0
"""The leading dimensions of a call, which an op takes as one."""

import torch
from torch import Tensor

from .. import _checks


def flatten(
    op: str, hidden: Tensor, group_ids: Tensor | None
) -> tuple[Tensor, Tensor | None, torch.Size]:
    """Flatten hidden [..., D] and group_ids [...] to the [M, D] and [M] that the op takes.

    Returns:
        hidden, group_ids and the leading dimensions of hidden. The op itself refuses a hidden
        that is no tensor or has no dimension.

    Raises:
        ValueError: group_ids of another shape; stride in the last dimension of hidden, which a copy
            would hide.
    """
    if not isinstance(hidden, Tensor) or hidden.dim() == 0:
        return hidden, group_ids, torch.Size()
    if hidden.dim() == 2:
        return hidden, group_ids, hidden.shape[:-1]
    check = _checks.Checker(op, hidden.device)
    check.unit_inner_stride(hidden, "hidden")
    if group_ids is not None:
        leading = hidden.shape[:-1]
        fits = group_ids.shape in (leading, (1,))
        check.value(fits, "group_ids", f"shape {list(leading)} or [1]", list(group_ids.shape))
        group_ids = group_ids.flatten()
    return hidden[None].flatten(0, -2), group_ids, hidden.shape[:-1]


def flatten_rows(hidden: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Flatten tensors of hidden's leading dimensions to [M]; [M, D] leaves them as they are.

    Raises:
        ValueError: another shape.
    """
    if not isinstance(hidden, Tensor) or hidden.dim() in (0, 2):
        return tensors
    check, leading = _checks.Checker("sparse_sample", hidden.device), hidden.shape[:-1]
    for name, tensor in tensors.items():
        check.shape(tensor, name, leading)
    return {name: tensor.flatten() for name, tensor in tensors.items()}
