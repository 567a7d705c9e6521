# SPDX-License-Identifier: Apache-2.0
"""The interface of a draft, and the simplest draft: a small causal LM."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .cache import KVCache, causal
from .lm_head import LMHead
from .target import CHUNK, CausalModel


class Draft(Protocol):
    """The interface of a draft.

    `lm_head`: applied to `head_input` of the draft's features of a token, it gives the logits of
    the next token. `feature_layers`: the layers of the target whose inputs the draft reads (see
    `CausalModel.forward`); empty: it reads the target's last hidden states.
    """

    lm_head: LMHead
    feature_layers: Sequence[int]

    def new_cache(self) -> KVCache:
        """Return an empty cache for one text."""
        ...

    def extend(
        self, tokens: Tensor, hidden: Tensor, counts: Sequence[int], cache: KVCache
    ) -> Tensor:
        """Read text: tokens int64 [B, n] that the draft has not seen, up to each text's newest.

        `hidden` [B, m, F]: the target's features of the tokens *before* the last m of these tokens,
        that is, the features from which the target chose them. `counts` [B]: number of tokens of
        each text; the rest is padding. Returns the draft's features of each text's newest token,
        [B, D].
        """
        ...

    def head_input(self, features: Tensor) -> Tensor:
        """Return the input of the LM head, [.., D], from the draft's features [.., D]."""
        ...

    def step(
        self, tokens: Tensor, parents: Tensor, ancestor_mask: Tensor, cache: KVCache
    ) -> Tensor:
        """Read nodes of trees: tokens int64 [B, n], and features of their `parents` [B, n, D].

        For `ancestor_mask` see `cache.visible`. Returns features [B, n, D].
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

    def new_cache(self) -> KVCache:
        return self.model.new_cache()

    def head_input(self, features: Tensor) -> Tensor:
        return features

    def extend(
        self, tokens: Tensor, hidden: Tensor, counts: Sequence[int], cache: KVCache
    ) -> Tensor:
        read = [
            self.model.forward(piece, ancestor_mask, cache, counts=piece_counts)[0]
            for ancestor_mask, piece_counts, (piece,) in pieces(
                counts, tokens.clamp(max=self.vocab_size - 1)
            )
        ]
        return newest(read, counts)

    def step(
        self, tokens: Tensor, parents: Tensor, ancestor_mask: Tensor, cache: KVCache
    ) -> Tensor:
        return self.model.forward(tokens, ancestor_mask, cache)[0]


def pieces(
    counts: Sequence[int], *columns: Tensor
) -> Iterator[tuple[Tensor, list[int], list[Tensor]]]:
    """Split columns [B, n, ..] into pieces of at most CHUNK tokens, to bound a long text's mask.

    Yields each piece's ancestor mask, the number of its tokens in each text without padding, and
    the piece.
    """
    for begin in range(0, columns[0].shape[1], CHUNK):
        piece = [column[:, begin : begin + CHUNK] for column in columns]
        size = piece[0].shape[1]
        piece_counts = [min(max(count - begin, 0), size) for count in counts]
        yield causal(size, piece[0].device), piece_counts, piece


def newest(read: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Return the features of each text's last token, [B, D], from pieces of features [B, n, D]."""
    features = torch.cat(tuple(read), dim=1)
    last = torch.tensor(counts, device=features.device) - 1
    return features[torch.arange(len(counts), device=features.device), last]
