# SPDX-License-Identifier: Apache-2.0
"""Layers of EAGLE drafts: Llama's layer on the loop's cache."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microspec_kernels._optional import require

from .cache import KVCache


class Layer(nn.Module):
    """A Llama decoder layer whose attention reads `inputs` and adds to `residual`.

    In Llama the inputs are `input_layernorm(residual)`. EAGLE's first layers read other inputs, in
    EAGLE-3 `width` = 2 hidden states concatenated. `index`: the layer's index in the cache.
    """

    def __init__(self, config: Any, index: int, width: int = 1) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm: nn.Module = nn.RMSNorm(size, eps)
        self.self_attn = Attention(config, index, width)
        self.post_attention_layernorm = nn.RMSNorm(size, eps)
        self.mlp = MLP(config)

    def forward(
        self,
        inputs: Tensor,
        residual: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: KVCache,
    ) -> Tensor:
        x = residual + self.self_attn(inputs, rotation, mask, cache)
        after: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return after


def through(
    layers: Iterable[Any],
    x: Tensor,
    rotation: tuple[Tensor, Tensor],
    masks: Iterable[Tensor],
    cache: KVCache,
) -> Tensor:
    """Run the layers one after the other, each as in Llama and under its own mask."""
    for layer, mask in zip(layers, masks, strict=True):
        x = layer(layer.input_layernorm(x), x, rotation, mask, cache)
    return x


class Attention(nn.Module):
    """Grouped-query attention over the cache, under a mask; `qk_norm` as in Qwen3."""

    def __init__(self, config: Any, index: int, width: int) -> None:
        super().__init__()
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        size = config.hidden_size
        # Qwen2's drafts have biases on q, k and v only; Llama's `attention_bias` adds all four.
        every = getattr(config, "attention_bias", False)
        qkv = getattr(config, "qkv_bias", every)
        self.index = index
        self.head_dim = dim
        self.q_proj = nn.Linear(width * size, heads * dim, bias=qkv)
        self.k_proj = nn.Linear(width * size, groups * dim, bias=qkv)
        self.v_proj = nn.Linear(width * size, groups * dim, bias=qkv)
        self.o_proj = nn.Linear(heads * dim, size, bias=every)
        normed = getattr(config, "qk_norm", False)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(dim, config.rms_norm_eps) if normed else nn.Identity() for _ in range(2)
        )

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, cache: KVCache
    ) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.q_norm(q), self.k_norm(k)
        keys, values = cache.update(rotate(k, *rotation), v, self.index)
        # [B, heads, n, head_dim]. A group of query heads shares one key and value head.
        out = F.scaled_dot_product_attention(
            rotate(q, *rotation), keys, values, mask, enable_gqa=q.shape[1] != k.shape[1]
        )
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(-2))
        return projected


class MLP(nn.Module):
    """The gated feed-forward part of a Llama layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        bias = getattr(config, "mlp_bias", False)
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)
        activations = require("transformers.activations", "speculative")
        self.activation = activations.ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return out


def signed(rotations: Tensor) -> Tensor:
    """Negate the first half of each sin, as `rotate` takes it: rotations [.., 2, head_dim]."""
    rotations[..., 1, : rotations.shape[-1] // 2].neg_()
    return rotations


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, heads, n, head_dim] by cos and `signed` sin, both [B, n or 1, head_dim].

    Column i is paired with column i + head_dim / 2.
    """
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos[:, None], swapped, sin[:, None])
