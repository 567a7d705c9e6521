"""A value of the device on the host, without waiting for the device."""

import torch
from torch import Tensor


class HostCopy:
    """The newest of a tensor's values that has arrived on the host."""

    def __init__(self) -> None:
        self._newest: Tensor | None = None
        self._arriving: tuple[Tensor, torch.cuda.Event] | None = None

    def poll(self, value: Tensor) -> Tensor | None:
        """The newest value that has reached the host; None before the first.

        Never waits: it looks whether the copy that an earlier call began has arrived, and begins
        that of ``value``, whose shape and dtype are the same in every call. Not to be captured.
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
