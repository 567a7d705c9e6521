# SPDX-License-Identifier: Apache-2.0
"""`LMHead`: the rows of an LM head that a draft uses."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from microspec_kernels._linear import broken_rows, log_broken


def differ_in_padding(size: int, other: int) -> bool:
    """Return whether vocabularies of these sizes may be one tokenizer's with different padding.

    Qwen2.5's sizes are 151936 and 152064. Up to 512 rows, or an eighth of a small vocabulary, count
    as padding. Two different tokenizers that pass this check give a bad draft but no wrong text.
    """
    return abs(size - other) <= min(512, max(size, other) // 8)


def scaled(z: Tensor, scale: float, softcap: float) -> Tensor:
    """Return the logits softcap · tanh(scale · z / softcap); softcap 0 is no cap."""
    z = z if scale == 1 else scale * z  # V is long: skip a pass that changes nothing
    return softcap * torch.tanh(z / softcap) if softcap else z


@dataclass(frozen=True)
class LMHead:
    """softcap · tanh(z / softcap) with z = scale · (x · weight + bias); softcap 0 is no cap.

    weight: [R, D]. bias: [R] or None.
    token_rows: int64 [V], each token's row, -1 if it has none; None: token i has row i, and R = V.
        A row without a token is never proposed.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0
    token_rows: Tensor | None = None

    @property
    def vocab_size(self) -> int:
        """V: the tokenizer's size, including tokens without a row."""
        return len(self.weight if self.token_rows is None else self.token_rows)

    @cached_property
    def ids(self) -> Tensor:
        """Each row's token, int64 [R]; -1 if it has none."""
        if self.token_rows is None:
            return torch.arange(len(self.weight), device=self.weight.device)
        tokens = (self.token_rows >= 0).nonzero()[:, 0]
        ids = self.token_rows.new_full((len(self.weight),), -1)
        ids[self.token_rows[tokens]] = tokens
        return ids

    @cached_property
    def rows(self) -> Tensor:
        """The rows that have a token, int64 [<= R]."""
        return (self.ids >= 0).nonzero()[:, 0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [.., R] of hidden [.., D], in its dtype; -inf for a row without a token."""
        z = scaled(F.linear(hidden, self.weight, self.bias), self.scale, self.softcap)
        return z.index_fill_(-1, self._unused, -torch.inf) if len(self._unused) else z

    def to_rows(self, tokens: Tensor) -> Tensor:
        """Map tokens int64 of any shape to rows; -1 stays -1 and stands for no row."""
        if self.token_rows is None:
            return tokens
        return self.token_rows[tokens.clamp(min=0)].where(tokens >= 0, -1)

    def to_tokens(self, rows: Tensor) -> Tensor:
        """Map rows int64 of any shape to tokens; -1 stays -1."""
        if self.token_rows is None:
            return rows
        return self.ids[rows.clamp(min=0)].where(rows >= 0, -1)

    def with_rows(self, tokens: Tensor) -> Tensor:
        """Return the tokens int64 [N] that have a row, in their order."""
        return tokens if self.token_rows is None else tokens[self.to_rows(tokens) >= 0]

    def only(self, tokens: Tensor) -> "LMHead":
        """Return a head over distinct tokens int64 [S] only, in their order, with copied rows."""
        rows = self.to_rows(tokens)
        token_rows = tokens.new_full((self.vocab_size,), -1)
        token_rows[tokens] = torch.arange(len(tokens), device=tokens.device)
        bias = None if self.bias is None else self.bias[rows]
        return replace(self, weight=self.weight[rows], bias=bias, token_rows=token_rows)

    def of_vocabulary(self, size: int) -> "LMHead":
        """Return the head for a vocabulary of `size` tokens.

        Tokens beyond V get no row; rows whose tokens lie beyond `size` get no token.
        """
        if size == self.vocab_size:
            return self
        if self.token_rows is None and size < self.vocab_size:
            bias = None if self.bias is None else self.bias[:size]
            return replace(self, weight=self.weight[:size], bias=bias)
        token_rows = F.pad(self._all_rows, (0, size - self.vocab_size), value=-1)
        return replace(self, token_rows=token_rows)

    def prepared(self) -> "LMHead":
        """Return the head itself, after it has computed all that waits for the device."""
        len(self.ids)
        len(self._unused)
        return self

    def sound(self) -> "LMHead":
        """Return the head without the tokens whose rows hold NaN or infinity; log them once.

        One such logit would make the log-sum-exp, and so all log-probabilities, NaN.
        """
        if len(self._broken) == 0:
            return self
        return replace(self, token_rows=self._all_rows.index_fill(0, self._broken, -1))

    @property
    def _all_rows(self) -> Tensor:
        """`token_rows`, filled in where it is None."""
        return self.ids if self.token_rows is None else self.token_rows

    @cached_property
    def _unused(self) -> Tensor:
        """The rows without a token."""
        none = torch.empty(0, dtype=torch.int64)
        return none if self.token_rows is None else (self.ids < 0).nonzero()[:, 0]

    @cached_property
    def _broken(self) -> Tensor:
        """The tokens whose rows hold NaN or infinity."""
        tokens = self.ids[broken_rows(self.weight, self.bias)]
        tokens = tokens[tokens >= 0]
        log_broken(tokens, f"a draft's LM head {list(self.weight.shape)}")
        return tokens
