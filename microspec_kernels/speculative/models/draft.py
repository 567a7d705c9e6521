"""What the loop asks of a draft, and the plainest one: a small model of its own."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .cache import KVCache, causal
from .lm_head import LMHead
from .target import CHUNK, CausalModel


class Draft(Protocol):
    """What the loop asks of a draft.

    `lm_head` of what `head_input` makes of its features of a token [D] gives the logits of the
    token after it. `taps`: the layers of the target whose inputs it reads (see
    `CausalModel.forward`); none: the target's last hidden states.
    """

    lm_head: LMHead
    taps: Sequence[int]

    def new_cache(self) -> KVCache:
        """An empty cache for one text."""
        ...

    def extend(
        self, tokens: Tensor, hidden: Tensor, counts: Sequence[int], cache: KVCache
    ) -> Tensor:
        """Read text: tokens int64 [B, n] that the draft has not seen, up to each text's newest.

        `hidden` [B, m, F] are the target's features of the tokens *before* the last m of these,
        that is, those from which it chose them. A text has `counts` [B] tokens, the rest pads.
        Returns the draft's feature of each text's newest, [B, D].
        """
        ...

    def head_input(self, features: Tensor) -> Tensor:
        """What the LM head takes, [.., D], of the draft's features."""
        ...

    def step(self, tokens: Tensor, parents: Tensor, lineage: Tensor, cache: KVCache) -> Tensor:
        """Read nodes of trees: tokens int64 [B, n], and the draft's features of their parents.

        `lineage` as in `cache.visible`. Takes and returns features [B, n, D].
        """
        ...


class ModelDraft:
    """An ordinary causal LM with the target's tokenizer; it takes no features.

    `vocab_size`: the tokens it can read. Another one, which only a target with more padding rows
    can write, reads as its last.

    Raises TypeError: an LM head that is not exactly its rows; and see `CausalModel`.
    """

    taps: Sequence[int] = ()

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
            self.model.forward(piece, lineage, cache, counts=own)[0]
            for lineage, own, (piece,) in pieces(counts, tokens.clamp(max=self.vocab_size - 1))
        ]
        return newest(read, counts)

    def step(self, tokens: Tensor, parents: Tensor, lineage: Tensor, cache: KVCache) -> Tensor:
        return self.model.forward(tokens, lineage, cache)[0]


def pieces(
    counts: Sequence[int], *columns: Tensor
) -> Iterator[tuple[Tensor, list[int], list[Tensor]]]:
    """Columns [B, n, ..] in pieces of at most CHUNK tokens, which bounds the mask of a long text.

    Yields a piece's lineage, how many of its tokens each text has, padding apart, and the piece.
    """
    for begin in range(0, columns[0].shape[1], CHUNK):
        piece = [column[:, begin : begin + CHUNK] for column in columns]
        size = piece[0].shape[1]
        own = [min(max(count - begin, 0), size) for count in counts]
        yield causal(size, piece[0].device), own, piece


def newest(read: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Of features [B, n, D], in pieces, those of each text's last token, [B, D]."""
    features = torch.cat(tuple(read), dim=1)
    last = torch.tensor(counts, device=features.device) - 1
    return features[torch.arange(len(counts), device=features.device), last]
