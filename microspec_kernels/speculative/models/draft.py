# SPDX-License-Identifier: Apache-2.0
"""The interface of a draft, and the simplest draft: a small causal LM."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .cache import KVCache
from .lm_head import LMHead
from .target import CHUNK, CausalModel


class Draft(Protocol):
    """The interface of a draft.

    `lm_head`: applied to `head_input` of the draft's features of a token, it gives the logits of
    the next token. `feature_layers`: the layers of the target whose inputs the draft reads (see
    `CausalModel.forward`); empty: it reads the target's last hidden states. `capturable`: see
    `CausalModel`; a draft without it counts as capturable.
    """

    lm_head: LMHead
    feature_layers: Sequence[int]
    capturable: bool = True

    def new_cache(self) -> KVCache:
        """Return an empty cache for one text."""
        ...

    def extend(self, tokens: Tensor, hidden: Tensor, counts: Tensor, cache: KVCache) -> Tensor:
        """Read text: tokens int64 [B, n] that the draft has not seen, up to each text's newest.

        `hidden` [B, m, F]: the target's features of the tokens *before* the last m of these tokens,
        that is, the features from which the target chose them. `counts` int64 [B]: number of tokens
        of each text; the rest is padding, negative or any token. Returns the draft's features of
        each text's newest token, [B, D].
        """
        ...

    def head_input(self, features: Tensor) -> Tensor:
        """Return the input of the LM head, [.., D], from the draft's features [.., D]."""
        ...

    def step(
        self, tokens: Tensor, parents: Tensor, positions: Tensor, mask: Tensor, cache: KVCache
    ) -> Tensor:
        """Read nodes of trees: tokens int64 [B, n], and features of their `parents` [B, n, D].

        `positions` int64 [B, n] or [B, 1]: of the nodes in the draft's cache. `mask`
        [B, n, columns], of the cache's dtype: see `KVCache.mask`. The entries stay pending. Returns
        features [B, n, D].
        """
        ...


class ModelDraft(Draft):
    """A causal LM with the target's tokenizer; it ignores features.

    `vocab_size`: number of tokens it can read. A token beyond it, which only a target with more
        padding rows can emit, is read as the last one.

    Raises TypeError: the LM head is not exactly its rows. For other errors see `CausalModel`.
    """

    feature_layers: Sequence[int] = ()

    def __init__(self, model: Any) -> None:
        self.model = model if isinstance(model, CausalModel) else CausalModel(model)
        self.lm_head = self.model.lm_head
        self.vocab_size = self.model.num_embeddings
        self.capturable = self.model.capturable

    def new_cache(self) -> KVCache:
        return self.model.new_cache()

    def head_input(self, features: Tensor) -> Tensor:
        return features

    def extend(self, tokens: Tensor, hidden: Tensor, counts: Tensor, cache: KVCache) -> Tensor:
        return extend(self._read, cache, counts, tokens)

    def step(
        self, tokens: Tensor, parents: Tensor, positions: Tensor, mask: Tensor, cache: KVCache
    ) -> Tensor:
        return self._read(positions.expand_as(tokens), mask, cache, tokens)

    def _read(self, positions: Tensor, mask: Tensor, cache: KVCache, tokens: Tensor) -> Tensor:
        known = tokens.clamp(0, self.vocab_size - 1)
        return self.model.forward(known, positions, mask, cache)[0]


def extend(read: Callable[..., Tensor], cache: KVCache, counts: Tensor, *columns: Tensor) -> Tensor:
    """Read text and keep it: `read(positions, mask, cache, *columns)` for columns [B, n, ..].

    A long text is read in pieces of CHUNK tokens, to bound the mask. `counts` int64 [B]: number of
    tokens of each text. Returns the features of each text's last token, [B, D].
    """
    features = []
    size = columns[0].shape[1]
    for begin in range(0, size, CHUNK):
        piece = [column[:, begin : begin + CHUNK] for column in columns]
        count = piece[0].shape[1]
        features.append(read(cache.ahead(count), cache.causal(count), cache, *piece))
        cache.keep_all(counts if count == size else (counts - begin).clamp(0, count))
    whole = torch.cat(features, dim=1) if len(features) > 1 else features[0]
    last = (counts - 1)[:, None, None].expand(-1, 1, whole.shape[2])
    return whole.gather(1, last)[:, 0]
