# SPDX-License-Identifier: Apache-2.0
"""The tokens of a step as `vocab_observe_` takes them, brought together by few kernels."""

import torch
from torch import Tensor

from .token_map import TokenMap

# Tokens of a step for which the buffers have room at first; more tokens make new ones. 256 requests
# of 16 tokens.
ROOM = 4096


class StepTokens:
    """Buffers for a step's candidates and for the tokens that the target wrote.

    Candidates end where the written tokens begin, so that both are one tensor without a copy.

    Args:
        token_map: the map from tokens to rows.
        device: device of the tokens.
    """

    def __init__(self, token_map: TokenMap, device: torch.device) -> None:
        self._map, self._device = token_map, device
        self._padding = torch.full((1,), -1, device=device)
        self._grow(ROOM)

    @torch.inference_mode(False)
    def _grow(self, room: int) -> None:
        """Make buffers for `room` candidates and as many written tokens. Nothing captures them."""
        self._room = room
        self._tokens = torch.full((2 * room,), -1, device=self._device)
        self._inside = torch.ones(room, dtype=torch.int64, device=self._device)
        self._columns = torch.arange(room, device=self._device)
        self._written = torch.arange(2 * room, device=self._device) >= room

    def likeliest(self, logits: Tensor, k: int) -> Tensor:
        """Return the k likeliest tokens of each row of logits [R, V]: int64 [R, k].

        The result lies where :meth:`rows` takes candidates without a copy, until the next call.
        """
        shape = (len(logits), k)
        count = shape[0] * k
        if count > self._room:
            self._grow(2 * count)
        tokens = self._tokens[self._room - count : self._room].view(shape)
        values = logits.new_empty(shape)
        if k == 1:  # on a CPU a third of argmax's time
            torch.max(logits, -1, keepdim=True, out=(values, tokens))
        else:
            torch.topk(logits, k, out=(values, tokens))
        return tokens

    def rows(
        self, tokens: Tensor, lengths: Tensor | None, candidates: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the rows of all tokens, the candidates' first, and which the target wrote.

        Args:
            tokens: int32 or int64 [N], or [B, n]; -1 is padding.
            lengths: integers [B], how many of each row of tokens are valid; None: all. Valid tokens
                and candidates are then in [-1, V).
            candidates: int32 or int64 of any shape.

        Returns:
            int32 or int64 [M + N], and bool [M + N].
        """
        count = 0 if candidates is None else candidates.numel()
        if max(count, tokens.numel()) > self._room:
            self._grow(2 * max(count, tokens.numel()))
        begin, end = self._room - count, self._room + tokens.numel()
        written = self._written[begin:end]
        if candidates is None and (lengths is None or not self._map.is_identity):
            if lengths is None:
                flat = tokens.flatten()
                return flat if self._map.is_identity else self._map.to_rows(flat), written
            inside = self._inside[: tokens.numel()].view_as(tokens)
            torch.lt(self._columns[: tokens.size(1)], lengths[:, None], out=inside)
            # What lies after the valid tokens may be anything.
            tokens = tokens.clamp(-1, self._map.target_vocab_size)
            return self._map.look_up(tokens, inside).flatten(), written
        both = self._tokens[begin:end]
        if candidates is not None and candidates.data_ptr() != both.data_ptr():
            both[:count].copy_(candidates.flatten())
        ours = both[count:].view_as(tokens)
        if lengths is None:
            ours.copy_(tokens)
            return both if self._map.is_identity else self._map.to_rows(both), written
        valid = self._columns[: tokens.size(1)] < lengths[:, None]
        torch.where(valid, tokens, self._padding, out=ours)
        return both if self._map.is_identity else self._map.look_up(both), written
