# SPDX-License-Identifier: Apache-2.0
"""EAGLE drafts: layers that read each token with the target's feature of the token before it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from microspec_kernels._optional import require

from .cache import KVCache
from .draft import Draft, extend
from .layers import Layer, rotation_rows, rotations, through
from .lm_head import LMHead
from .target import CausalModel


class Eagle(nn.Module, Draft, ABC):
    """The common part of EAGLE-1/2 and EAGLE-3 drafts.

    The input at position i is the embedding of token i+1 and a feature of token i; the output is
    the draft's feature of token i+1. The features are the target's for verified text and the
    draft's own inside a tree. Parameters have the names of the public checkpoints.

    config: the checkpoint's config.json as a `LlamaConfig`. It may also have `windows`, the sliding
        window of each layer or None, and `qk_norm`.
    target: gives the device and the dtype.
    embedding: [R, D]; None: the target's embedding.

    Attribute `vocab_size`: R, the number of tokens the draft can read. A token beyond it, which
    only a target with more padding rows can emit, is read as the last one.
    """

    lm_head: LMHead
    layers: nn.ModuleList
    rotary: nn.Module
    feature_layers: Sequence[int] = ()

    def __init__(self, config: Any, target: CausalModel, embedding: Tensor | None = None) -> None:
        super().__init__()
        self.hidden_size: int = config.hidden_size
        no_windows = (None,) * config.num_hidden_layers
        self.windows: Sequence[int | None] = getattr(config, "windows", no_windows)
        # A plain tensor, so that it is not part of this module's state.
        self.embedding = target.embedding if embedding is None else embedding
        self.vocab_size = len(self.embedding)
        self._tables: dict[int, Tensor] = {}

    def new_cache(self) -> KVCache:
        return KVCache(len(self.layers), self.embedding.device)

    def head_input(self, features: Tensor) -> Tensor:
        return features

    def extend(self, tokens: Tensor, hidden: Tensor, counts: Tensor, cache: KVCache) -> Tensor:
        # The first token of a text has no feature before it, so it is skipped.
        if skipped := tokens.shape[1] - hidden.shape[1]:
            tokens, counts = tokens[:, skipped:], counts - skipped
        return extend(self._read_text, cache, counts, tokens, hidden)

    def step(
        self, tokens: Tensor, parents: Tensor, positions: Tensor, mask: Tensor, cache: KVCache
    ) -> Tensor:
        return self._read(positions, mask, cache, tokens, parents)

    def _read_text(
        self, positions: Tensor, mask: Tensor, cache: KVCache, tokens: Tensor, hidden: Tensor
    ) -> Tensor:
        return self._read(positions, mask, cache, tokens, self.fuse(hidden))

    def _read(
        self, positions: Tensor, mask: Tensor, cache: KVCache, tokens: Tensor, features: Tensor
    ) -> Tensor:
        seen = {
            window: mask[:, None]
            if window is None
            else cache.within(mask, positions.expand_as(tokens), window)[:, None]
            for window in set(self.windows)
        }
        masks = [seen[window] for window in self.windows]
        if self.vocab_size < self.lm_head.vocab_size:
            tokens = tokens.clamp(max=self.vocab_size - 1)
        embedded = self.embedding[tokens]  # -1, no token, reads the last row
        reach = cache.room + cache.pending + tokens.shape[1]
        rotation = self.rotation(self._rotations(reach), positions)
        out = self.run(embedded, features, rotation, masks, cache)
        cache.advance(positions.expand_as(tokens))
        return out

    def _rotations(self, length: int) -> Tensor:
        """Return the table of the positions in [0, length).

        A captured graph may read any table that it has seen, so none is freed. Their sizes double.
        """
        size = 1 << (length - 1).bit_length()
        if size not in self._tables:
            positions = torch.arange(size, device=self.embedding.device)[None]
            self._tables[size] = self.rotations(positions)
        return self._tables[size]

    @abstractmethod
    def rotations(self, positions: Tensor) -> Tensor:
        """Return a row of a table for each of positions int64 [1, n], [n, ..]; see `rotation`."""

    def rotation(self, table: Tensor, positions: Tensor) -> Any:
        """Return what `run` takes at positions int64 [B, n], or [B, 1] for all tokens of a text.

        table: `rotations` of the positions 0, 1, .. Here its rows are cos and sin.
        """
        return table[positions].unbind(2)

    def fuse(self, features: Tensor) -> Tensor:
        """Map the target's features [B, n, F] to the draft's features [B, n, D]."""
        return features

    @abstractmethod
    def run(
        self,
        embedded: Tensor,
        features: Tensor,
        rotation: Any,
        masks: Sequence[Tensor],
        cache: KVCache,
    ) -> Tensor:
        """Run the layers: return the features [B, n, D] of tokens.

        `embedded` [B, n, D]: the tokens' embeddings. `features` [B, n, D]: features of the tokens
        before them. `rotation`: see the method. `masks`: each layer's.
        """


class LlamaEagle(Eagle):
    """A draft whose layers are those of `layers.py`."""

    def prepare(self, config: Any, target: CausalModel) -> None:
        """Move all parameters to the target's device and dtype, and make the rotary embedding."""
        self.to(device=target.device, dtype=target.dtype)
        # After the cast: frequencies in half precision would lose the positions.
        llama = require("transformers.models.llama.modeling_llama", "speculative")
        self.rotary = llama.LlamaRotaryEmbedding(config).to(target.device)

    def new_cache(self) -> KVCache:
        # Attention takes a float mask as it is, and would convert any other in each layer.
        rows = self.embedding
        return KVCache(len(self.layers), rows.device, mask_dtype=rows.dtype)

    def rotations(self, positions: Tensor) -> Tensor:
        cos, sin = self.rotary(self.embedding, positions)
        return rotation_rows(cos[0], sin[0])

    def rotation(self, table: Tensor, positions: Tensor) -> Tensor:
        return rotations(table, positions)


class EagleDraft(LlamaEagle):
    """EAGLE-1/2 (arXiv 2401.15077, 2406.16858): predicts the target's next feature.

    fc joins the embedding and the feature. The feature is the target's last hidden state after the
    final norm, so without its own `lm_head` the draft uses the target's whole LM head, including
    bias, scale and soft cap. The first layer has no norm before its attention.

    Raises ValueError: the hidden size differs from the target's. TypeError: the target's LM head or
    embedding, if needed, is not exactly its rows.
    """

    def __init__(
        self,
        config: Any,
        target: CausalModel,
        embedding: Tensor | None = None,
        lm_head: LMHead | None = None,
    ) -> None:
        super().__init__(config, target, embedding)
        size = config.hidden_size
        if size != target.hidden_size:
            raise ValueError(
                f"EagleDraft: hidden_size: expected the target's {target.hidden_size}, got {size}"
            )
        self.lm_head = target.lm_head if lm_head is None else lm_head
        self.fc = nn.Linear(2 * size, size, bias=getattr(config, "bias", True))
        layers = [Layer(config, index) for index in range(config.num_hidden_layers)]
        layers[0].input_layernorm = nn.Identity()
        self.layers = nn.ModuleList(layers)
        self.prepare(config, target)

    def run(
        self,
        embedded: Tensor,
        features: Tensor,
        rotation: Tensor,
        masks: Sequence[Tensor],
        cache: KVCache,
    ) -> Tensor:
        x: Tensor = self.fc(torch.cat((embedded, features), dim=-1))
        return through(self.layers, x, rotation, masks, cache)
