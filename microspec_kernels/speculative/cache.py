"""The KV cache of one sequence, into which a tree can be written and mostly taken out again."""

from typing import Any

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer in one tensor `[layers, 2, 1, heads, room, head_dim]`.

    A forward pass appends entries layer by layer (`update`, the method Hugging Face's attention
    calls) and then moves the end (`advance`). Verification appends a whole tree; `keep` then
    moves the accepted entries to the front of it and forgets the others, so that no pass ever
    copies what was there before. The room doubles when it runs out.
    """

    def __init__(self, layers: int) -> None:
        self.length = 0
        self._layers = layers
        self._entries: Tensor | None = None

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one layer's new entries `[1, heads, n, head_dim]` behind the end.

        Returns that layer's keys and values `[1, heads, length + n, head_dim]`, as views.
        """
        end = self.length + keys.shape[-2]
        if self._entries is None or end > self._entries.shape[-2]:
            self._grow(keys, end)
        assert self._entries is not None
        stored_keys, stored_values = self._entries[layer]
        stored_keys[..., self.length : end, :] = keys
        stored_values[..., self.length : end, :] = values
        return stored_keys[..., :end, :], stored_values[..., :end, :]

    def advance(self, count: int) -> None:
        """Make the last `count` entries, written by every layer, part of the cache."""
        self.length += count

    def keep(self, base: int, nodes: list[int]) -> None:
        """Of the entries behind `base`, keep `base + node` for each node, in this order.

        `nodes` is ascending, so an entry only ever moves towards the front.
        """
        if self._entries is not None and nodes != list(range(len(nodes))):
            source = torch.tensor(nodes, device=self._entries.device) + base
            # Indexing copies before the assignment writes: source and place may overlap.
            self._entries[..., base : base + len(nodes), :] = self._entries[..., source, :]
        self.length = base + len(nodes)

    def get_seq_length(self, layer: int = 0) -> int:
        """The number of entries, under the name that Hugging Face's models ask for."""
        return self.length

    def _grow(self, like: Tensor, needed: int) -> None:
        heads, _, head_dim = like.shape[-3:]
        room = max(2 * self.length, needed, 256)
        grown = like.new_empty(self._layers, 2, 1, heads, room, head_dim)
        if self._entries is not None:
            grown[..., : self.length, :] = self._entries[..., : self.length, :]
        self._entries = grown


def causal(count: int, device: torch.device) -> Tensor:
    """The lineage (see `visible`) of `count` tokens in a row: bool [count, count]."""
    return torch.ones(count, count, dtype=torch.bool, device=device).tril_()


def visible(lineage: Tensor, length: int, window: int | None = None) -> tuple[Tensor, Tensor]:
    """What new entries may attend to, and where they stand.

    `lineage` bool [n, m]: which of the cache's last m entries, the n new ones included, are
    ancestors of each new entry or itself; everything before those m is an ancestor of all.
    `length` is the number of entries with the new ones.

    Returns the mask bool [n, length] and the positions int64 [n]. An entry sees exactly the text
    that leads to it, so its position is the number of entries it sees, less itself, and within a
    sliding window it sees the last `window` of those.
    """
    rows, described = lineage.shape
    mask = torch.cat((lineage.new_ones(rows, length - described), lineage), dim=1)
    positions = length - described - 1 + lineage.sum(1)
    if window is not None and length > window:
        mask &= mask.flip(1).cumsum(1).flip(1) <= window
    return mask, positions
