# SPDX-License-Identifier: Apache-2.0
"""Copy a value from the device to the host without waiting for the device."""

import torch
from torch import Tensor


class HostCopy:
    """The newest value of a tensor that has arrived on the host."""

    def __init__(self) -> None:
        self._newest: Tensor | None = None
        self._arriving: tuple[Tensor, torch.cuda.Event] | None = None

    def poll(self, value: Tensor) -> Tensor | None:
        """Return the newest value that has reached the host; None before the first.

        The method never waits. If the copy that an earlier call began has arrived, it begins a copy
        of ``value``. The shape and dtype of ``value`` must be the same in every call. A value on a
        CPU is returned at once. Do not call this during graph capture.
        """
        if value.device.type == "cpu":
            return value
        if self._arriving is None:
            pinned = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._arriving = (pinned, torch.cuda.Event())
        elif not self._arriving[1].query():
            return self._newest
        else:
            self._newest = self._arriving[0].clone()
        pinned, arrival = self._arriving
        pinned.copy_(value, non_blocking=True)
        arrival.record()
        return self._newest
