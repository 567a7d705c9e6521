# SPDX-License-Identifier: Apache-2.0
"""The map between the target's tokens and the rows of the draft's LM head."""

import torch
from torch import Tensor

from microspec_kernels._token_ids import token_ids


class TokenMap:
    """Map tokens to rows and rows to tokens; -1 stands for no row and no token.

    Each map is one lookup, because an engine maps in every step: the index -1 reads a table's last
    entry, which stands for nothing.

    Args:
        lm_head_rows: R, number of rows of the draft's LM head.
        target_vocab_size: V, the number of the target's tokens; None: the number of rows.
        row_tokens: integers [R], each row's token, derived from EAGLE-3's d2t; None: row i is
            token i.
        device: device of the tokens and rows.
        broken: int64 [n], rows that no token maps to.

    Attributes:
        is_identity: whether row i is token i for all tokens, so that nothing is looked up.

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
        self.is_identity = row_tokens is None
        if row_tokens is None:
            return
        where, size = "microspec: row_tokens", self.target_vocab_size
        if row_tokens.shape != (lm_head_rows,):
            got = list(row_tokens.shape)
            raise ValueError(f"{where}: expected shape [{lm_head_rows}], got {got}")
        tokens = token_ids(where, row_tokens, size, device=device)
        nothing = torch.tensor([-1], device=device)
        self._row_tokens = torch.cat((tokens, nothing))
        self._row_tokens_or_0 = self._row_tokens.clamp(min=0)
        # Entries V and V + 1 are no tokens.
        self._token_rows = torch.full((size + 2,), -1, dtype=torch.int32, device=device)
        self._token_rows[tokens] = torch.arange(lm_head_rows, dtype=torch.int32, device=device)
        if broken is not None:
            self._token_rows[tokens[broken]] = -1

    @property
    def row_tokens(self) -> Tensor | None:
        """Each row's token, int64 [R]; None if row i is token i."""
        return None if self.is_identity else self._row_tokens[:-1]

    @property
    def token_rows(self) -> Tensor | None:
        """Each token's row, int32 [V], -1 for none; None if row i is token i."""
        return None if self.is_identity else self._token_rows[: self.target_vocab_size]

    def to_rows(self, tokens: Tensor) -> Tensor:
        """Map tokens, int32 or int64 of any shape, to rows; no row, or outside [0, V): -1."""
        size = self.target_vocab_size
        if self.is_identity:
            return tokens.where((tokens >= 0) & (tokens < size), -1)
        return self._token_rows[tokens.clamp(-1, size)]

    def to_tokens(self, rows: Tensor, *, default: int = -1) -> Tensor:
        """Map rows, int32 or int64 of any shape, to tokens.

        Args:
            default: -1 or 0, the token of the row -1.
        """
        if self.is_identity:
            return rows if default < 0 else rows.clamp(min=0)
        return (self._row_tokens if default < 0 else self._row_tokens_or_0)[rows]
