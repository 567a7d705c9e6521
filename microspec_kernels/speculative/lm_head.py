"""What an LM head computes, for whichever of its rows a draft wants."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LMHead:
    """softcap · tanh(z / softcap) of z = scale · (x · weight + bias); softcap 0 is none.

    weight: [R, D]. bias: [R] or None.
    token_rows: int64 [V], each token's row, -1 where it has none; None: token i's is row i, R = V.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0
    token_rows: Tensor | None = None

    @property
    def vocab_size(self) -> int:
        """V: of the tokenizer, whether or not every token has a row."""
        return len(self.weight if self.token_rows is None else self.token_rows)

    @cached_property
    def ids(self) -> Tensor:
        """Each row's token, int64 [R]."""
        ids = torch.arange(len(self.weight), device=self.weight.device)
        if self.token_rows is not None:
            tokens = (self.token_rows >= 0).nonzero()[:, 0]
            ids[self.token_rows[tokens]] = tokens
        return ids

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [.., R] of hidden [.., D], in its dtype."""
        z = F.linear(hidden, self.weight, self.bias)
        z = z if self.scale == 1 else self.scale * z  # V is long: no pass over it for nothing
        return self.softcap * torch.tanh(z / self.softcap) if self.softcap else z

    def rows(self, tokens: Tensor) -> Tensor:
        """The rows of tokens int64, in their shape; -1 for those that have none, and for -1."""
        if self.token_rows is None:
            return tokens
        return self.token_rows[tokens.clamp(min=0)].where(tokens >= 0, -1)

    def tokens(self, rows: Tensor) -> Tensor:
        """The tokens of rows int64, in their shape; -1 for -1."""
        if self.token_rows is None:
            return rows
        return self.ids[rows.clamp(min=0)].where(rows >= 0, -1)

    def known(self, tokens: Tensor) -> Tensor:
        """Those of tokens int64 [N] that have a row, in their order."""
        return tokens if self.token_rows is None else tokens[self.rows(tokens) >= 0]

    def only(self, tokens: Tensor) -> "LMHead":
        """The head over distinct tokens int64 [S] alone, in their order, with their rows copied."""
        rows = self.rows(tokens)
        token_rows = tokens.new_full((self.vocab_size,), -1)
        token_rows[tokens] = torch.arange(len(tokens), device=tokens.device)
        bias = None if self.bias is None else self.bias[rows]
        return replace(self, weight=self.weight[rows], bias=bias, token_rows=token_rows)
