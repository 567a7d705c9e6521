# SPDX-License-Identifier: Apache-2.0
"""Check a caller's choice of groups."""

from collections.abc import Sequence

import torch
from torch import Tensor


def group_numbers(
    where: str, groups: Tensor | Sequence[int] | None, num_groups: int, device: torch.device
) -> Tensor:
    """Convert a choice of groups into group numbers.

    The function does not wait for numbers on a GPU: PyTorch's device assert fails later on a wrong
    one. It waits for a mask on a GPU.

    Args:
        where: name of the choice in an error.
        groups: numbers in [0, num_groups), of an integer dtype; or a bool mask
            [num_groups]; or None for all.
        num_groups: G, number of groups.
        device: device of the result.

    Returns:
        int64 [n] on ``device``.

    Raises:
        TypeError: floats.
        ValueError: a mask of another length, or numbers of more than one dimension.
        IndexError: a number outside [0, num_groups), on a CPU.
    """
    if groups is None:
        return torch.arange(num_groups, device=device)
    chosen = torch.as_tensor(groups, device=groups.device if isinstance(groups, Tensor) else "cpu")
    if chosen.dtype == torch.bool:
        if chosen.shape != (num_groups,):
            raise ValueError(f"{where}: expected a mask [{num_groups}], got {list(chosen.shape)}")
        return chosen.nonzero().flatten().to(device)
    if chosen.numel() and (chosen.is_floating_point() or chosen.is_complex()):
        dtype = str(chosen.dtype).removeprefix("torch.")
        raise TypeError(f"{where}: expected integers or a bool mask, got {dtype}")
    if chosen.dim() > 1:
        raise ValueError(f"{where}: expected shape [n], got {list(chosen.shape)}")
    chosen = chosen.flatten().long()
    if chosen.device.type != "cpu":
        # A negative index would count from the end; num_groups makes it fail instead.
        return chosen.where(chosen >= 0, num_groups).to(device)
    outside = chosen[(chosen < 0) | (chosen >= num_groups)]
    if len(outside):
        raise IndexError(f"{where}: expected groups in [0, {num_groups}), got {int(outside[0])}")
    return chosen.to(device)
