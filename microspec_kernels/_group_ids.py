# SPDX-License-Identifier: Apache-2.0
"""Check a caller's choice of groups."""

from collections.abc import Sequence

import torch
from torch import Tensor


def group_ids(
    where: str, groups: Tensor | Sequence[int] | None, count: int, device: torch.device
) -> Tensor:
    """Convert a choice of groups into group numbers.

    The function does not wait for numbers on a GPU: PyTorch's device assert fails later on a wrong
    one. It waits for a mask on a GPU.

    Args:
        where: name of the choice in an error.
        groups: numbers in [0, count), of an integer dtype; or a bool mask [count]; or None for all.
        count: G, number of groups.
        device: device of the result.

    Returns:
        int64 [n] on ``device``.

    Raises:
        TypeError: floats.
        ValueError: a mask of another length, or numbers of more than one dimension.
        IndexError: a number outside [0, count), on a CPU.
    """
    if groups is None:
        return torch.arange(count, device=device)
    chosen = torch.as_tensor(groups, device=groups.device if isinstance(groups, Tensor) else "cpu")
    if chosen.dtype == torch.bool:
        if chosen.shape != (count,):
            raise ValueError(f"{where}: expected a mask [{count}], got {list(chosen.shape)}")
        return chosen.nonzero().flatten().to(device)
    if chosen.numel() and (chosen.is_floating_point() or chosen.is_complex()):
        dtype = str(chosen.dtype).removeprefix("torch.")
        raise TypeError(f"{where}: expected integers or a bool mask, got {dtype}")
    if chosen.dim() > 1:
        raise ValueError(f"{where}: expected shape [n], got {list(chosen.shape)}")
    chosen = chosen.flatten().long()
    if chosen.device.type != "cpu":
        # A negative index would count from the end; count makes it fail instead.
        return chosen.where(chosen >= 0, count).to(device)
    outside = chosen[(chosen < 0) | (chosen >= count)]
    if len(outside):
        raise IndexError(f"{where}: expected groups in [0, {count}), got {int(outside[0])}")
    return chosen.to(device)
