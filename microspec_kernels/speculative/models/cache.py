# SPDX-License-Identifier: Apache-2.0
"""The KV cache of a batch of texts; it takes in whole trees and keeps their accepted paths."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SMALLEST_ROOM = 256


class KVCache:
    """Keys and values of every layer in one tensor `[layers, 2, B, heads, room, head_dim]`.

    A forward pass appends entries layer by layer (`update`, the method that Hugging Face's
    attention calls) and then moves the ends (`advance`). Verification appends whole trees. `keep`
    then moves the accepted entries to the front and drops the others, so no pass copies older
    entries. The room doubles when it runs out.

    `lengths`: number of entries of each of the B texts.
    """

    def __init__(self, layers: int, batch: int = 1) -> None:
        self.lengths = [0] * batch
        self._layers = layers
        self._entries: Tensor | None = None

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one layer's new entries `[B, heads, n, head_dim]` after the end of each text.

        Returns that layer's keys and values `[B, heads, longest + n, head_dim]`, as views. Shorter
        texts have zeros after their entries.
        """
        count, longest = keys.shape[-2], max(self.lengths)
        end = longest + count
        if self._entries is None or end > self._entries.shape[-2]:
            self._make_room(keys, max(2 * longest, end, SMALLEST_ROOM))
        assert self._entries is not None
        for stored, new in zip(self._entries[layer], (keys, values), strict=True):
            if min(self.lengths) == longest:
                stored[..., longest:end, :] = new
            else:
                for text, begin in enumerate(self.lengths):
                    stored[text, :, begin : begin + count] = new[text]
                    # Masked entries are still multiplied by zero, and NaN would survive that.
                    stored[text, :, begin + count : end] = 0
        stored_keys, stored_values = self._entries[layer]
        return stored_keys[..., :end, :], stored_values[..., :end, :]

    def advance(self, counts: int | Sequence[int]) -> None:
        """Add the first entries that every layer wrote after each text's end to the text.

        `counts`: number of entries, one for all texts or one for each.
        """
        counts = [counts] * len(self.lengths) if isinstance(counts, int) else counts
        self.lengths = [old + new for old, new in zip(self.lengths, counts, strict=True)]

    def keep(self, prefix_lengths: Sequence[int], nodes: Sequence[Sequence[int]]) -> None:
        """Keep each text's prefix, then the entries of its nodes, which follow the prefix.

        A text's `nodes` are ascending, so an entry only moves towards the front.
        """
        self.lengths = []
        for text, (prefix, kept) in enumerate(zip(prefix_lengths, nodes, strict=True)):
            length = prefix + len(kept)
            if self._entries is not None and list(kept) != list(range(len(kept))):
                entries = self._entries[:, :, text]
                source = torch.tensor(kept, device=entries.device) + prefix
                # Indexing copies before the assignment writes, so source and destination may
                # overlap.
                entries[..., prefix:length, :] = entries[..., source, :]
            self.lengths.append(length)

    def append(self, other: "KVCache") -> None:
        """Append the texts of `other`, a cache of the same model, to the batch."""
        if other._entries is not None:
            like = other._entries[0, 0]
            room = max(cache._room() for cache in (self, other))
            for cache in (self, other):
                cache._make_room(like, room)
            assert self._entries is not None
            self._entries = torch.cat((self._entries, other._entries), dim=2)
        self.lengths = self.lengths + other.lengths

    def select(self, texts: Sequence[int]) -> None:
        """Keep these of the B texts, in this order."""
        if self._entries is not None:
            self._entries = self._entries[:, :, list(texts)]
        self.lengths = [self.lengths[text] for text in texts]

    def get_seq_length(self, layer: int = 0) -> int:
        """Return the number of entries; Hugging Face's models call this name."""
        return max(self.lengths)

    def _room(self) -> int:
        return 0 if self._entries is None else self._entries.shape[-2]

    def _make_room(self, like: Tensor, room: int) -> None:
        """Resize to `room` entries a text, with heads as in `like` `[.., heads, n, head_dim]`."""
        if room == self._room():
            return
        heads, _, head_dim = like.shape[-3:]
        grown = like.new_empty(self._layers, 2, len(self.lengths), heads, room, head_dim)
        if self._entries is not None:
            longest = max(self.lengths, default=0)
            grown[..., :longest, :] = self._entries[..., :longest, :]
        self._entries = grown


def causal(count: int, device: torch.device) -> Tensor:
    """Return the ancestor mask (see `visible`) of `count` tokens in a row: [1, count, count]."""
    return torch.ones(1, count, count, dtype=torch.bool, device=device).tril_()


def visible(
    ancestor_mask: Tensor, lengths: Sequence[int], window: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the attention mask and the positions of new entries.

    ancestor_mask: bool [B, n, m], or [1, n, m] for all texts. It marks which of a text's
        last m entries, the n new ones included, are ancestors of each new entry or the entry
        itself. Every earlier entry is an ancestor of all.
    lengths: number of entries of each text without the new ones.
    window: length of the sliding window; None: no window.

    Returns the mask bool [B, n, longest + n] and the positions int64 [B, n]. An entry sees exactly
    the text that leads to it, so its position is the number of entries it sees minus 1. Within a
    sliding window it sees the last `window` of them.
    """
    _, new, described = ancestor_mask.shape
    ancestor_mask = ancestor_mask.expand(len(lengths), -1, -1)
    begin = torch.tensor(lengths, device=ancestor_mask.device)[:, None] + new - described
    column = torch.arange(max(lengths) + new, device=ancestor_mask.device) - begin
    of_mask = column.clamp(0, described - 1)[:, None].expand(-1, new, -1)
    inside = ((column >= 0) & (column < described))[:, None]
    mask = (column < 0)[:, None] | (inside & ancestor_mask.gather(2, of_mask))
    positions = begin - 1 + ancestor_mask.sum(-1)
    if window is not None and mask.shape[-1] > window:
        mask &= mask.flip(-1).cumsum(-1).flip(-1) <= window
    return mask, positions
