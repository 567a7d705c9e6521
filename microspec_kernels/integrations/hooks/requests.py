# SPDX-License-Identifier: Apache-2.0
"""Numbers of an engine's running requests, and the request of each token on the device."""

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor


class RequestNumbers:
    """Number the running requests of an engine that has no numbers of its own.

    The numbers depend on the calls only, so they are the same on all ranks.

    Args:
        most: numbers to give. If all are taken, a new request takes that of the one which was
            asked for the longest ago, whose text is not counted any more.
    """

    def __init__(self, most: int) -> None:
        self._free = list(range(most - 1, -1, -1))
        self._numbers: dict[Hashable, int] = {}  # the last asked for last

    def begin(self, request: Hashable) -> int:
        """Number a request; one that has a number keeps it."""
        if request in self._numbers:
            return self.of([request])[0]
        if not self._free:
            self.end(next(iter(self._numbers)))
        self._numbers[request] = number = self._free.pop()
        return number

    def end(self, request: Hashable) -> None:
        """Free the number of a request, if it has one."""
        number = self._numbers.pop(request, -1)
        if number >= 0:
            self._free.append(number)

    def of(self, requests: Iterable[Hashable]) -> list[int]:
        """Return the requests' numbers; -1 for a request without one."""
        found = [(request, self._numbers.pop(request, -1)) for request in requests]
        self._numbers.update((request, number) for request, number in found if number >= 0)
        return [number for _, number in found]


class TokenRequests:
    """The request of each token of a step on the device, copied there only when it changes.

    Args:
        device: device of the tokens.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: tuple[tuple[tuple[int, ...], int], ...] | None = None
        self._newest = torch.empty(0, dtype=torch.int64, device=device)

    def of(self, *parts: tuple[Sequence[int], int]) -> Tensor:
        """Return int64 [n], the requests of all tokens.

        Never waits for the device. The next call with other parts returns another tensor.

        Args:
            parts: requests of rows, and the number of tokens in each of these rows.
        """
        asked = tuple((tuple(requests), width) for requests, width in parts)
        if asked != self._parts:
            numbers = [
                torch.tensor(requests, dtype=torch.int64, device="cpu").repeat_interleave(width)
                for requests, width in asked
            ]
            values = torch.cat(numbers)
            if self._device.type == "cuda":
                values = values.pin_memory()
            self._newest = values.to(self._device, non_blocking=True)
            self._parts = asked
        return self._newest
