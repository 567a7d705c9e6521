# SPDX-License-Identifier: Apache-2.0
"""The counters of an `EngineHead` on the host."""

from typing import NamedTuple


class EngineStats(NamedTuple):
    """Totals since the start over all vocabularies, and the number of tokens active now.

    Attributes:
        hits: tokens that the target wrote and that were active when it did.
        misses: tokens that the target wrote and that were not. Tokens without a row in the draft's
            LM head count as neither, because no vocabulary can cover them.
        active: tokens that are active now.
        dense_steps: steps that drafted with the engine's own LM head, as the engine's plugin counts
            them; 0 from an `EngineHead`.
    """

    hits: int
    misses: int
    active: int
    dense_steps: int = 0

    @property
    def coverage(self) -> float | None:
        """hits / (hits + misses); None before any token was counted."""
        counted = self.hits + self.misses
        return self.hits / counted if counted else None
