# SPDX-License-Identifier: Apache-2.0
"""Find the group of ids, and rows of every dtype: PyTorch cannot index some."""

import torch
from torch import Tensor

from .._checks import E2M1


def by_group(ids: Tensor) -> Tensor:
    """View ids [K] as [1, K]; return [G, K] as is."""
    return ids if ids.dim() == 2 else ids[None]


def _as_bytes(rows: Tensor) -> Tensor:
    """View fp8 and fp4 rows as bytes, because PyTorch cannot index them."""
    return rows.view(torch.uint8) if rows.dtype in (torch.float8_e4m3fn, E2M1) else rows


def rows_at(rows: Tensor, index: Tensor) -> Tensor:
    """Return rows[index]."""
    return _as_bytes(rows)[index].view(rows.dtype)


def put_rows(target: Tensor, index: Tensor, rows: Tensor) -> None:
    """Set target[index] = rows."""
    _as_bytes(target)[index] = _as_bytes(rows)
