# SPDX-License-Identifier: Apache-2.0
"""The map between the target's tokens and the rows of the draft's LM head."""

import torch
from torch import Tensor

from microspec_kernels._token_ids import token_ids


class TokenMap:
    """Map tokens to rows and rows to tokens; -1 stands for no row and no token.

    Args:
        lm_head_rows: R, number of rows of the draft's LM head.
        target_vocab_size: V, the number of the target's tokens; None: the number of rows.
        row_tokens: integers [R], each row's token, derived from EAGLE-3's d2t; None: row i is
            token i.
        device: device of the tokens and rows.
        broken: int64 [n], rows that no token maps to.

    Raises:
        ValueError, TypeError: row_tokens has another shape, or does not hold distinct token ids
            below V.
    """

    def __init__(
        self,
        lm_head_rows: int,
        target_vocab_size: int | None,
        row_tokens: Tensor | None,
        device: torch.device,
        broken: Tensor | None = None,
    ) -> None:
        self.target_vocab_size = target_vocab_size or lm_head_rows
        drops = broken is not None and len(broken) > 0
        if row_tokens is None and (lm_head_rows < self.target_vocab_size or drops):
            row_tokens = torch.arange(lm_head_rows, device=device)
        self._row_tokens: Tensor | None = None
        if row_tokens is not None:
            where, size = "microspec: row_tokens", self.target_vocab_size
            if row_tokens.shape != (lm_head_rows,):
                got = list(row_tokens.shape)
                raise ValueError(f"{where}: expected shape [{lm_head_rows}], got {got}")
            self._row_tokens = token_ids(where, row_tokens, size, device=device)
            self._token_rows = torch.full((self.target_vocab_size,), -1, device=device)
            self._token_rows[self._row_tokens] = torch.arange(lm_head_rows, device=device)
            if broken is not None:
                self._token_rows[self._row_tokens[broken]] = -1

    @property
    def row_tokens(self) -> Tensor | None:
        """The token of each row, int64 [R]; None if row i is token i."""
        return self._row_tokens

    def is_token(self, tokens: Tensor) -> Tensor:
        """Return which tokens lie in [0, V), with or without a row: bool, shaped as tokens."""
        return (tokens >= 0) & (tokens < self.target_vocab_size)

    def to_rows(self, tokens: Tensor) -> Tensor:
        """Map tokens, int32 or int64 of any shape, to rows; no row, or outside [0, V): -1."""
        valid = self.is_token(tokens)
        if self._row_tokens is None:
            return torch.where(valid, tokens, -1)
        return torch.where(valid, self._token_rows[tokens.where(valid, 0).long()], -1)

    def to_tokens(self, rows: Tensor) -> Tensor:
        """Map rows, int64 of any shape, to tokens; -1 stays -1."""
        if self._row_tokens is None:
            return rows
        return torch.where(rows >= 0, self._row_tokens[rows.clamp(min=0)], -1)
