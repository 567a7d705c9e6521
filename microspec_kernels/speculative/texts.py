# SPDX-License-Identifier: Apache-2.0
"""`Texts`: what a batch holds of its texts on the device, one row each."""

import torch
from torch import Tensor

from .models.cache import KVCache, room_for


class Texts:
    """Caches and small tensors with a row for each text; the texts are in the first rows.

    The caches hold what the models have read. `newest` int64: the token that the target has not
    read yet. `features` [.., D]: the draft's features for it. `groups` int64: the text's vocabulary
    in the head. `seeds` int64: the 64 bits of the text's seed.

    pending: entries of one step in `cache` and in `draft_cache`.
    """

    def __init__(self, cache: KVCache, draft_cache: KVCache, pending: tuple[int, int]) -> None:
        self.caches = self.cache, self.draft_cache = cache, draft_cache
        self._pending = pending
        empty = cache.lengths.new_empty(0)
        self.newest, self.groups, self.seeds, self.features = empty, empty, empty, empty
        self.set(0, 0)

    def set(self, rows: int, longest: int) -> None:
        """Tell the number of texts, and a bound of their lengths."""
        for cache in self.caches:
            cache.rows, cache.longest = rows, longest

    def put(
        self,
        row: int,
        length: int,
        caches: tuple[KVCache, KVCache],
        values: tuple[Tensor, int, int, Tensor],
    ) -> bool:
        """Copy a text that may have `length` tokens to a row, one after those that are taken.

        caches: of this text alone. values: of `newest` [1], `groups`, `seeds` and `features`
            [1, D].

        Returns whether tensors were replaced. Other texts are copied only then; the rows at least
        double, so this is seldom.
        """
        replaced = False
        for cache, pending, alone in zip(self.caches, self._pending, caches, strict=True):
            replaced |= cache.reserve(row + 1, room_for(length), pending, alone)
            cache.put(row, alone)
        newest, group, seed, features = values
        if row == len(self.newest):
            replaced = True
            self.newest, self.groups, self.seeds = (
                torch.cat((tensor, newest.new_zeros(max(1, row))))
                for tensor in (self.newest, self.groups, self.seeds)
            )
            # Feature width depends on the draft, so the first text defines it.
            old = self.features if row else features[:0]
            self.features = torch.cat((old, features.new_zeros(max(1, row), features.shape[1])))
        self.newest[row : row + 1] = newest
        self.groups[row], self.seeds[row] = group, seed
        self.features[row : row + 1] = features
        return replaced

    def move(self, source: int, row: int) -> None:
        """Copy a text to another row."""
        for cache in self.caches:
            cache.move(source, row)
        for tensor in (self.newest, self.groups, self.seeds, self.features):
            tensor[row] = tensor[source]
