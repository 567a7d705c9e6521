# SPDX-License-Identifier: Apache-2.0
"""The KV cache of several MTP modules, and the nodes that they have drafted below a text."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import KVCache


class Nodes:
    """The drafted nodes that a module reads, the newest level first.

    roots: [B, 1, modules · D], the features of each text's newest token, by module.

    `level`: number of levels, and the module that reads them. `tokens`, `positions` int64 [B, N].
    `mask` bool [B, N, N + room]: see `KVCache.mask`. `features` [B, N, D]: those of the module
    before, of all levels but the newest, until this one has read.
    """

    def __init__(self, roots: Tensor) -> None:
        self.roots = roots
        self.level = 0
        none = roots.new_empty(len(roots), 0, dtype=torch.int64)
        self.tokens, self.positions = none, none
        self.features = roots[:, :0]
        self.mask: Tensor | None = None
        self._parents = none  # as indices into `features` and a root behind them
        self._newest = 0

    def add(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> None:
        """Add a level: tokens and positions int64 [B, w], mask bool [B, w, w + N + room]."""
        width = tokens.shape[1]
        # A node sees one node of the level above: its parent. The first level's is the root.
        parents = torch.zeros_like(tokens)
        if self.mask is not None:
            parents = mask[:, :, width : width + self._newest].int().argmax(dim=2)
            mask = torch.cat((mask, F.pad(self.mask, (width, 0))), dim=1)
        # What was read before has moved behind the level that was the newest then.
        self._parents = torch.cat((parents, self._parents + self._newest), dim=1)
        self.tokens = torch.cat((tokens, self.tokens), dim=1)
        self.positions = torch.cat((positions, self.positions), dim=1)
        self.mask, self._newest, self.level = mask, width, self.level + 1

    def parent_features(self, root: Tensor) -> Tensor:
        """Return the features [B, N, D] of all parents; `root` [B, 1, D]: the module before's."""
        known = torch.cat((self.features[..., : root.shape[2]], root), dim=1)
        return known.gather(1, self._parents[:, :, None].expand(-1, -1, root.shape[2]))


class ModulesCache(KVCache):
    """A KV cache with a layer for each of several MTP modules.

    A module d has no feature to read for the first d tokens of a text. It has entries for them all
    the same, so that all modules' columns agree; `from_column` hides them.

    newest: [1, modules · D], zeros that say how wide features are.

    `newest` [allocated rows, modules · D]: the features of each text's newest token. `before`
    [B, modules · D]: of the token before a pass over text. `reading` int64 [B, n]: positions of the
    pass that runs. `nodes`: what is drafted; None while text is read.
    """

    def __init__(self, modules: int, newest: Tensor) -> None:
        super().__init__(modules, newest.device)
        self.newest = self.before = newest
        self.reading = self.lengths[:, None]
        self.nodes: Nodes | None = None

    def from_column(self, first: int, mask: Tensor) -> Tensor:
        """Hide the text before column `first` in the mask [B, 1, n, columns] of the current pass.

        An entry always sees itself, because softmax over no entry is NaN.
        """
        if first == 0:
            return mask
        new = self.reading.shape[1]
        text = self._numbers(self.room).expand(self.rows, -1)
        positions = torch.cat((self.reading, *self._pending, text), dim=1)
        itself = self._numbers(new)[:, None] == self._numbers(positions.shape[1])
        return mask & (positions >= first)[:, None, None] | itself

    def read_again(self) -> None:
        """Forget the pending entries, but not the nodes: another module reads them all."""
        super().drop()

    def drop(self) -> None:
        super().drop()
        self.nodes = None

    def put(self, row: int, other: KVCache) -> None:
        super().put(row, other)
        assert isinstance(other, ModulesCache)
        self.newest[row] = other.newest[0]

    def move(self, source: int, row: int) -> None:
        super().move(source, row)
        self.newest[row] = self.newest[source]

    def reserve(self, rows: int, room: int, pending: int = 0, like: Any = None) -> bool:
        replaced = super().reserve(rows, room, pending, like)
        more = len(self.lengths) - len(self.newest)
        if more > 0:
            self.newest = torch.cat(
                (self.newest, self.newest.new_zeros(more, self.newest.shape[1]))
            )
        return replaced
