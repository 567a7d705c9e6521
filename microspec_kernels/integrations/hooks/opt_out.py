# SPDX-License-Identifier: Apache-2.0
"""Requests that opt out of the active vocabulary."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

KEY = "microspec"
"""The entry of a request's extra arguments: false opts out."""

# The API servers of the engines take numbers and strings only.
_WORDS = {"false": False, "0": False, "true": True, "1": True}


def has_opted_out(extra: Any, request: object, logger: logging.Logger) -> bool:
    """Return whether a request's extra arguments opt out.

    The text and the prompt of such a request are neither judged, counted nor learned, and none of
    their tokens enters a vocabulary. While it runs, the engine's own LM head drafts. A value that
    is not false, 0, true or 1, or one of these as a string, is an error in the log, and the request
    has not opted out.

    Args:
        extra: a mapping that may have :data:`KEY`; anything else has no extra arguments.
        request: its name, for the log.
        logger: a logger that the engine shows.
    """
    value = extra.get(KEY) if isinstance(extra, Mapping) else None
    if value is None:
        return False
    wanted: object = _WORDS.get(value.strip().lower()) if isinstance(value, str) else value
    if isinstance(wanted, (bool, int, float)) and wanted in (0, 1):
        return not wanted
    expected = "expected true or false, so it has not opted out; got"
    logger.error("MicroSpec: request %s: %s: %s %r", request, KEY, expected, value)
    return False


class LeftOut:
    """Takes the tokens of requests that have opted out from what a vocabulary observes.

    Args:
        device: device of the tokens.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def of(self, flags: Sequence[bool]) -> Tensor:
        """Return flags as bool [n, 1] on the device. Never waits for the device."""
        values = torch.tensor(flags, dtype=torch.bool, device="cpu")[:, None]
        if self._device.type == "cuda":
            values = values.pin_memory()
        return values.to(self._device, non_blocking=True)

    def take(
        self,
        tokens: Tensor,
        opted_out: Sequence[bool],
        lengths: Tensor | None = None,
        candidates: Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return tokens and lengths without those of requests that have opted out.

        Args:
            tokens: [B, n], a row for each request.
            opted_out: B flags.
            lengths: [B], or None.
            candidates: [R, k], whose rows of these requests become -1 in place.
            rows: B numbers, how many rows of `candidates` each request has; None: as many each.
        """
        flags = self.of(opted_out)
        if candidates is not None:
            if rows is None:
                each = [len(candidates) // len(opted_out)] * len(opted_out)
            else:
                each = list(rows)
            owners = zip(opted_out, each, strict=True)
            candidates.masked_fill_(self.of([flag for flag, n in owners for _ in range(n)]), -1)
        if lengths is None:
            return tokens.masked_fill(flags, -1), None
        return tokens, lengths.masked_fill(flags[:, 0], 0)
