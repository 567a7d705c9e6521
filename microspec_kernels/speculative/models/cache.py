# SPDX-License-Identifier: Apache-2.0
"""The KV cache of a batch of texts; it takes in whole trees and keeps their accepted paths."""

from functools import cache as once
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_ROOM = 256


def room_for(length: int) -> int:
    """Return a text's length rounded up, by at most a quarter, so that few rooms differ."""
    step = max(SMALLEST_ROOM, 1 << max(0, length.bit_length() - 3))
    return max(1, -(-length // step)) * step


@once
def identity(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the constant identity [size, size]. Captured graphs read it, so it is never freed."""
    return torch.eye(size, dtype=dtype, device=device)


@once
def lower_triangle(size: int, device: torch.device) -> Tensor:
    """Return the constant lower triangle with the diagonal, bool [size, size]; see `identity`."""
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


@once
def mask_of_itself(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the constant mask [size, size] of entries that see only themselves; see `identity`."""
    return as_mask(identity(size, torch.bool, device), dtype)


def as_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a bool mask as it is, or for a float dtype as what is added to scores: 0 or -inf."""
    if dtype == torch.bool:
        return seen
    return torch.where(seen, 0.0, torch.scalar_tensor(-torch.inf, dtype=dtype))


class KVCache:
    """Keys and values of every layer in one tensor of fixed room; the lengths are on the device.

    The tensor is `[layers, 2, rows, heads, pending + room, head_dim]`. A text begins at column
    `pending`. A forward pass writes its new entries before it, layer by layer (`update`, the method
    that Hugging Face's attention calls), and `advance` makes them pending; the next pass writes
    before these. So a pass attends to one range of columns: [newest pass .. first pass | text].
    `keep` moves accepted entries of a pass behind the text, in one gather and one scatter; `drop`
    forgets what is pending. No shape depends on a value on the device.

    Masked entries are multiplied by 0, and NaN would survive that. So the columns behind a text
    hold zeros, or entries that the text could have had.

    rows: number of texts; they are the first of the tensor's rows.
    longest: an upper bound of their lengths that the host knows.
    lengths: int64 [allocated rows], number of entries of each text.
    mask_dtype: of the masks: bool, set where an entry is seen, or a float to add to scores, 0 or
        -inf.
    """

    def __init__(
        self,
        layers: int,
        device: torch.device,
        rows: int = 1,
        mask_dtype: torch.dtype = torch.bool,
    ) -> None:
        self.rows = rows
        self.mask_dtype = mask_dtype
        self.longest = 0
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self._layers = layers
        self._entries: Tensor | None = None
        self._pending_room = 0
        self._pending: list[Tensor] = []  # positions [B, n] of each pass, the newest first
        self._columns = torch.arange(SMALLEST_ROOM, device=device)

    @property
    def room(self) -> int:
        """Number of columns of each text that a pass attends to."""
        return room_for(self.longest)

    @property
    def pending(self) -> int:
        """Number of pending entries of each text."""
        return sum(positions.shape[1] for positions in self._pending)

    @property
    def ends(self) -> Tensor:
        """Number of entries of each text, int64 [B]."""
        return self.lengths[: self.rows]

    def ahead(self, count: int) -> Tensor:
        """Return the positions of `count` tokens that follow each text, int64 [B, count]."""
        return self.ends[:, None] + self._numbers(count)

    def mask(self, ancestor_mask: Tensor | None = None) -> Tensor:
        """Return the columns that the entries of a pass see, [B, n, n + room].

        ancestor_mask: bool [B, n, n], or [1, n, n] for all texts: the entries of the pass that each
            one sees, itself included. None: return the part of the text only, [B, 1, room].
        """
        text = (self._numbers(self.room) < self.ends[:, None])[:, None]
        if ancestor_mask is not None:
            new = ancestor_mask.expand(self.rows, -1, -1)
            text = torch.cat((new, text.expand(-1, new.shape[1], -1)), dim=2)
        return as_mask(text, self.mask_dtype)

    def alone(self, count: int) -> Tensor:
        """Return a mask of entries that see only themselves among `count`: [B, count, count]."""
        mask = mask_of_itself(count, self.mask_dtype, self._columns.device)
        return mask.expand(self.rows, -1, -1)

    def causal(self, count: int) -> Tensor:
        """Return the `mask` of a pass of `count` tokens in a row."""
        seen = lower_triangle(room_for(count), self._columns.device)
        return self.mask(seen[None, :count, :count])

    def within(self, mask: Tensor, positions: Tensor, window: int) -> Tensor:
        """Return the `mask` [B, n, columns] of a pass at `positions` [B, n], cut to a window.

        An entry sees entries whose positions are less than `window` before its own.
        """
        text = self._numbers(self.room).expand(self.rows, -1)
        columns = torch.cat((positions, *self._pending, text), dim=1)
        unseen = columns[:, None] <= positions[:, :, None] - window
        return mask.masked_fill(unseen, False if mask.dtype == torch.bool else -torch.inf)

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one layer's new entries `[B, heads, n, head_dim]` before the pending ones.

        Values may be narrower than keys. Returns that layer's keys and values
        `[B, heads, n + pending + room, head_dim]`, as views.
        """
        new = keys.shape[-2]
        pending = new + self.pending
        self.reserve(self.rows, self.room, pending, keys)
        assert self._entries is not None
        columns = slice(self._pending_room - pending, self._pending_room + self.room)
        stored = self._entries[layer, :, : self.rows, :, columns]
        # Latent attention has two parts of different widths.
        width = values.shape[-1]
        wide = values if width == keys.shape[-1] else F.pad(values, (0, keys.shape[-1] - width))
        torch.stack((keys, wide), out=stored[..., :new, :])
        stored_keys, stored_values = stored.unbind()
        return stored_keys, stored_values[..., :width]

    def advance(self, positions: Tensor) -> None:
        """Make the entries that every layer has written pending; `positions` [B, n] are theirs."""
        self._pending.insert(0, positions)

    def drop(self) -> None:
        """Forget the pending entries."""
        self._pending.clear()

    def keep(self, paths: Tensor, counts: Tensor) -> None:
        """Append entries of the one pending pass to each text, and forget the others.

        paths: int64 [B, m], entries of the pass, the ones to keep first.
        counts: int64 [B], how many of them to keep.
        """
        self._append(self.ahead(paths.shape[1]), counts, paths)

    def keep_all(self, counts: Tensor | None = None) -> None:
        """Append the entries of the one pending pass to each text: the first `counts`, or all.

        They must be of tokens in a row, as `ahead` gives their positions.
        """
        (positions,) = self._pending
        whole = torch.full_like(self.ends, positions.shape[1]) if counts is None else counts
        self._append(positions, whole)

    def _append(self, positions: Tensor, counts: Tensor, paths: Tensor | None = None) -> None:
        """Copy entries of the one pending pass to positions [B, m]: those of `paths`, or all."""
        self.longest += positions.shape[1]
        if self._entries is not None:
            self.reserve(self.rows, self.longest)
            entries = self._entries[:, :, : self.rows]
            begin = self._pending_room
            new, texts = entries[..., begin - self.pending : begin, :], entries[..., begin:, :]
            shape = (*new.shape[:4], positions.shape[1], new.shape[5])
            if paths is not None:
                new = new.gather(4, paths[:, None, :, None].expand(shape))
            texts.scatter_(4, positions[:, None, :, None].expand(shape), new)
        self.ends.add_(counts)
        self.drop()

    def put(self, row: int, other: "KVCache") -> None:
        """Copy the one text of `other`, a cache of the same model, to a row that is reserved.

        `other.longest` is that text's length.
        """
        self.lengths[row] = other.lengths[0]
        if other._entries is not None:
            assert self._entries is not None
            text = other._entries[:, :, 0, :, other._pending_room :][..., : other.longest, :]
            self._entries[:, :, row] = 0
            stored = self._entries[:, :, row, :, self._pending_room :]
            stored[..., : other.longest, :] = text

    def move(self, source: int, row: int) -> None:
        """Copy a text to another row."""
        self.lengths[row] = self.lengths[source]
        if self._entries is not None:
            self._entries[:, :, row] = self._entries[:, :, source]

    def reserve(
        self, rows: int, room: int, pending: int = 0, like: "Tensor | KVCache | None" = None
    ) -> bool:
        """Make room for texts, their columns and pending entries; keep what is there.

        Each of the three at least doubles if it grows, so copies are few. `like`: entries
        `[.., heads, n, head_dim]`, or a cache of the same model; needed before there are any.

        Returns whether tensors were replaced.
        """
        old, sizes = self._entries, self._sizes()
        wanted = tuple(
            size if size >= needed else max(needed, 2 * size)
            for size, needed in zip(sizes, (rows, room, pending), strict=True)
        )
        self._numbers(wanted[1] + wanted[2])
        more = wanted[0] - len(self.lengths)
        if more > 0:
            self.lengths = torch.cat((self.lengths, self.lengths.new_zeros(more)))
        like = like._entries if isinstance(like, KVCache) else like
        like = like if old is None else old
        if like is None or wanted == sizes:
            return more > 0
        rows, room, pending = wanted
        heads, head_dim = like.shape[-3], like.shape[-1]
        grown = like.new_zeros(self._layers, 2, rows, heads, pending + room, head_dim)
        if old is not None:
            columns = grown[:, :, : sizes[0], :, pending - sizes[2] :]
            columns[..., : old.shape[4], :] = old
        self._entries, self._pending_room = grown, pending
        return True

    def get_seq_length(self, layer: int = 0) -> int:
        """Return a bound of the number of entries; Hugging Face's models call this name."""
        return self.longest

    def _sizes(self) -> tuple[int, int, int]:
        """Return the allocated rows, columns of a text, and pending columns."""
        if self._entries is None:
            return 0, 0, 0
        _, _, rows, _, columns, _ = self._entries.shape
        return rows, columns - self._pending_room, self._pending_room

    def _numbers(self, count: int) -> Tensor:
        """Return 0, 1, .., count - 1."""
        if count > len(self._columns):
            self._columns = torch.arange(room_for(count), device=self._columns.device)
        return self._columns[:count]
