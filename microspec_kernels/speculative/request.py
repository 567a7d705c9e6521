# SPDX-License-Identifier: Apache-2.0
"""`Request`: the state of one text of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .stats import Generation, Stats


@dataclass(eq=False)
class Request:
    """A text that a `Batch` continues.

    `tokens`: the new tokens so far. `seed`: seed of the random numbers that draw them. `group`: the
    text's vocabulary in the head. `stats.seconds` covers the whole batch. `number`: distinct among
    the running texts, and the smallest at the start. `row`: the text's row in the batch's tensors.
    `prompt_length`: number of tokens before the new ones.
    """

    max_new_tokens: int
    eos: frozenset[int]
    seed: int
    group: int
    stats: Stats
    prompt_length: int = 0
    number: int = 0
    row: int = 0
    tokens: list[int] = field(default_factory=list)

    @property
    def read(self) -> int:
        """Number of tokens that the target has read: all but the newest."""
        return self.prompt_length + len(self.tokens) - 1

    @property
    def done(self) -> bool:
        """Whether the text has its length or an end-of-text token; it has then left the batch."""
        ended = bool(self.tokens) and self.tokens[-1] in self.eos
        return ended or len(self.tokens) >= self.max_new_tokens

    def take(self, new: Sequence[int]) -> int:
        """Append tokens until the text is done. Returns how many were appended."""
        before = len(self.tokens)
        for token in new:
            if self.done:
                break
            self.tokens.append(token)
        return len(self.tokens) - before

    def result(self) -> Generation:
        """Return the tokens so far, with their statistics."""
        tokens = torch.tensor(self.tokens, dtype=torch.int64)
        return Generation(tokens, self.stats.acceptance_lengths, self.stats)
