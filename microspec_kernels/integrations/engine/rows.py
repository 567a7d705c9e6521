"""Which of the target's tokens each row of the draft's LM head stands for."""

import torch
from torch import Tensor


class DraftRows:
    """Rows for tokens and tokens for rows; -1 where there is none, and for -1.

    Args:
        rows: of the draft's LM head.
        target_vocab_size: V, tokens of the target; None: as many as rows.
        row_tokens: integers [rows], each row's token, as EAGLE-3's d2t has it; None where row i is
            token i.
        device: where tokens and rows will lie.
        broken: int64 [n], rows that count as no token's.

    Raises:
        ValueError, TypeError: row_tokens.
    """

    def __init__(
        self,
        rows: int,
        target_vocab_size: int | None,
        row_tokens: Tensor | None,
        device: torch.device,
        broken: Tensor | None = None,
    ) -> None:
        self.target_vocab_size = target_vocab_size or rows
        drops = broken is not None and len(broken) > 0
        if row_tokens is None and (rows < self.target_vocab_size or drops):
            row_tokens = torch.arange(rows)
        self._row_tokens: Tensor | None = None
        if row_tokens is not None:
            _check(row_tokens, rows, self.target_vocab_size)
            self._row_tokens = row_tokens.to(device, torch.int64)
            self._token_rows = torch.full((self.target_vocab_size,), -1, device=device)
            self._token_rows[self._row_tokens] = torch.arange(rows, device=device)
            if broken is not None:
                self._token_rows[self._row_tokens[broken]] = -1

    def known(self, tokens: Tensor) -> Tensor:
        """Which are tokens of the target, with a row or without: bool, shaped as tokens."""
        return (tokens >= 0) & (tokens < self.target_vocab_size)

    def of(self, tokens: Tensor) -> Tensor:
        """int32 or int64, any shape, to rows shaped likewise; -1 also for what is no token."""
        known = self.known(tokens)
        if self._row_tokens is None:
            return torch.where(known, tokens, -1)
        return torch.where(known, self._token_rows[tokens.where(known, 0).long()], -1)

    def tokens(self, rows: Tensor) -> Tensor:
        """int64, any shape, to tokens shaped likewise."""
        if self._row_tokens is None:
            return rows
        return torch.where(rows >= 0, self._row_tokens[rows.clamp(min=0)], -1)


def _check(row_tokens: Tensor, rows: int, target_vocab_size: int) -> None:
    where = "microspec: row_tokens: expected"
    if row_tokens.is_floating_point() or row_tokens.dtype == torch.bool:
        raise TypeError(f"{where} integers, got {row_tokens.dtype}")
    if row_tokens.shape != (rows,):
        raise ValueError(f"{where} shape [{rows}], got {list(row_tokens.shape)}")
    outside = row_tokens[(row_tokens < 0) | (row_tokens >= target_vocab_size)]
    if len(outside):
        raise ValueError(f"{where} tokens in [0, {target_vocab_size}), got {int(outside[0])}")
    tokens, times = row_tokens.unique(return_counts=True)
    if len(tokens) < rows:
        twice = int(tokens[times > 1][0])
        raise ValueError(f"{where} a token of its own for each row, got {twice} for several")
