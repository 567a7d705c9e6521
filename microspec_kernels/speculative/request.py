"""One text of a batch: how far it has come and where it ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .stats import Generation, Stats


@dataclass(eq=False)
class Request:
    """A text that a `Batch` continues.

    `tokens`: the new ones so far. `seed`: of the numbers that draw them. `group`: of the head's
    vocabularies. The seconds in `stats` are the whole batch's.
    """

    max_new_tokens: int
    eos: frozenset[int]
    seed: int
    group: int
    stats: Stats
    tokens: list[int] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """The text has its length or an end of text; it has then left the batch."""
        ended = bool(self.tokens) and self.tokens[-1] in self.eos
        return ended or len(self.tokens) >= self.max_new_tokens

    def take(self, new: Sequence[int]) -> int:
        """Continue by these as far as the text goes. Returns how many those are."""
        before = len(self.tokens)
        for token in new:
            if self.done:
                break
            self.tokens.append(token)
        return len(self.tokens) - before

    def result(self) -> Generation:
        tokens = torch.tensor(self.tokens, dtype=torch.int64)
        return Generation(tokens, self.stats.acceptance_lengths, self.stats)
