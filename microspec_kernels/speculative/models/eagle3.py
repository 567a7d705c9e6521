# SPDX-License-Identifier: Apache-2.0
"""EAGLE-3: a draft that reads features from several layers of the target."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .cache import KVCache
from .eagle import LlamaEagle
from .layers import Layer, through
from .lm_head import LMHead
from .target import CausalModel


class Eagle3Draft(LlamaEagle):
    """EAGLE-3 (arXiv 2503.01840): predicts the next token from features of several target layers.

    For a verified token, fc makes the draft's feature from the inputs of the target's layers
    `feature_layers`. Inside a tree the draft's own output, as it leaves the layers, replaces it.
    `norm` comes between the feature and the LM head. Layers after the first, if any, are Llama
    layers.

    Fields of `config` beside Llama's, with the trainers' names and defaults:
    eagle_aux_hidden_state_layer_ids: `feature_layers`; None: layers 2, n // 2 and n - 3 of n.
    fc_bias: whether fc has a bias; `load_draft` sets it from the tensors.
    norm_before_fc: whether `input_norm` normalises the whole input of fc.
    fc_norm: whether a separate norm normalises each layer's part of that input.
    norm_before_residual: whether the first layer adds to the output of `hidden_norm` or to its
        input.
    norm_output: whether the next step, too, reads the output after `norm`.

    Without its own `lm_head` the draft uses the target's rows without bias, scale and soft cap. If
    the hidden sizes differ, the draft must have its own `lm_head` and `embedding`.

    Raises ValueError: `feature_layers` that are not layers of the target. TypeError: the target's
    LM head or embedding, if needed, is not exactly its rows.
    """

    def __init__(
        self,
        config: Any,
        target: CausalModel,
        embedding: Tensor | None = None,
        lm_head: LMHead | None = None,
    ) -> None:
        super().__init__(config, target, embedding)
        depth, size, eps = target.config.num_hidden_layers, config.hidden_size, config.rms_norm_eps
        feature_layers = getattr(config, "eagle_aux_hidden_state_layer_ids", None)
        self.feature_layers = tuple(feature_layers or (2, depth // 2, depth - 3))
        if min(self.feature_layers) < 0 or max(self.feature_layers) >= depth:
            raise ValueError(
                "Eagle3Draft: eagle_aux_hidden_state_layer_ids: expected layers of the target, in "
                f"[0, {depth}), got {list(self.feature_layers)}"
            )
        self.lm_head = LMHead(target.lm_head.weight) if lm_head is None else lm_head
        parts = [target.hidden_size] * len(self.feature_layers)
        before_fc = getattr(config, "norm_before_fc", False)
        self.input_norm = nn.RMSNorm(sum(parts), eps) if before_fc else nn.Identity()
        normed_parts = parts if getattr(config, "fc_norm", False) else []
        self.fc_norm = nn.ModuleList(nn.RMSNorm(part, eps) for part in normed_parts)
        self.fc = nn.Linear(sum(parts), size, bias=getattr(config, "fc_bias", False))
        first = FirstLayer(config, getattr(config, "norm_before_residual", False))
        others = [Layer(config, index) for index in range(1, config.num_hidden_layers)]
        self.layers = nn.ModuleList([first, *others])
        self.norm = nn.RMSNorm(size, eps)
        self.norm_output: bool = getattr(config, "norm_output", False)
        self.prepare(config, target)

    def head_input(self, features: Tensor) -> Tensor:
        return features if self.norm_output else self.norm(features)

    def fuse(self, features: Tensor) -> Tensor:
        features = self.input_norm(features)
        if len(self.fc_norm):
            parts = features.chunk(len(self.feature_layers), dim=-1)
            normed = [norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)]
            features = torch.cat(normed, dim=-1)
        fused: Tensor = self.fc(features)
        return fused

    def run(
        self,
        embedded: Tensor,
        features: Tensor,
        rotation: Tensor,
        masks: Sequence[Tensor],
        cache: KVCache,
    ) -> Tensor:
        first: Any
        first, *others = self.layers
        x: Tensor = first(*first.inputs(embedded, features), rotation, masks[0], cache)
        x = through(others, x, rotation, masks[1:], cache)
        return self.norm(x) if self.norm_output else x


class FirstLayer(Layer):
    """The first layer; its attention reads the embedding and the feature, each after a norm."""

    def __init__(self, config: Any, norm_before_residual: bool) -> None:
        super().__init__(config, index=0, width=2)
        self.hidden_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_before_residual = norm_before_residual

    def inputs(self, embedded: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attention's input, [B, n, 2 D], and the residual, [B, n, D]."""
        normed: Tensor = self.hidden_norm(features)
        read = torch.cat((self.input_layernorm(embedded), normed), dim=-1)
        return read, normed if self.norm_before_residual else features
