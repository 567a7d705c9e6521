# SPDX-License-Identifier: Apache-2.0
"""Layers of EAGLE drafts: Llama's layer on the loop's cache."""

from collections.abc import Iterable, Sequence
from functools import cache as once
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
        rotation: Tensor,
        mask: Tensor,
        cache: KVCache,
    ) -> Tensor:
        x: Tensor = self.self_attn(residual, inputs, rotation, mask, cache)
        after: Tensor = self.mlp(x, self.post_attention_layernorm(x))
        return after


def through(
    layers: Iterable[Any],
    x: Tensor,
    rotation: Tensor,
    masks: Iterable[Tensor],
    cache: KVCache,
) -> Tensor:
    """Run the layers one after the other, each as in Llama and under its own mask."""
    for layer, mask in zip(layers, masks, strict=True):
        x = layer(layer.input_layernorm(x), x, rotation, mask, cache)
    return x


class Joined:
    """Linear layers that read the same input, as one product.

    The rows of their weights become views of one tensor. If something has replaced them since, such
    as a cast or a deep copy, the next call joins them again. Hooks on the layers do not run.
    """

    def __init__(self, *parts: nn.Linear) -> None:
        self._parts = parts
        self._places: list[int] = []
        self._rows: Tensor
        self._bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the results of all layers, concatenated: [.., sum of their sizes]."""
        if self._places != self._current_places():
            self._rows = joined([part.weight for part in self._parts])
            biased = self._parts[0].bias is not None
            self._bias = joined([part.bias for part in self._parts]) if biased else None
            self._places = self._current_places()
        return F.linear(x, self._rows, self._bias)

    def _current_places(self) -> list[int]:
        tensors = [tensor for part in self._parts for tensor in (part.weight, part.bias)]
        return [tensor.data_ptr() for tensor in tensors if tensor is not None]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors by rows, and make them views of the result."""
    whole = torch.cat([part.detach() for part in parts])
    for part, rows in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = rows
    return whole


def add_linear(x: Tensor, read: Tensor, linear: nn.Linear) -> Tensor:
    """Return x + linear(read), both [B, n, ..]; without a bias in one call."""
    if linear.bias is None:
        return torch.addmm(x.flatten(0, 1), read.flatten(0, 1), linear.weight.t()).view_as(x)
    added: Tensor = x + linear(read)
    return added


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
        self.heads, self.groups = heads, groups
        self.q_proj = nn.Linear(width * size, heads * dim, bias=qkv)
        self.k_proj = nn.Linear(width * size, groups * dim, bias=qkv)
        self.v_proj = nn.Linear(width * size, groups * dim, bias=qkv)
        self.o_proj = nn.Linear(heads * dim, size, bias=every)
        self._qkv = Joined(self.q_proj, self.k_proj, self.v_proj)
        self.normed = getattr(config, "qk_norm", False)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(dim, config.rms_norm_eps) if self.normed else nn.Identity() for _ in range(2)
        )

    def forward(
        self,
        residual: Tensor,
        x: Tensor,
        rotation: Tensor,
        mask: Tensor,
        cache: KVCache,
    ) -> Tensor:
        """Return the residual [B, n, D] plus the attention of x."""
        # [B, n, heads, head_dim]. A group of query heads shares one key and value head.
        qkv = self._qkv(x).unflatten(-1, (-1, self.head_dim))
        qk, v = qkv.split((self.heads + self.groups, self.groups), dim=2)
        if self.normed:
            q, k = qk.split((self.heads, self.groups), dim=2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)
        q, k = (qk @ rotation).split((self.heads, self.groups), dim=2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        keys, values = cache.update(k, v, self.index)
        out = F.scaled_dot_product_attention(
            q, keys, values, mask, enable_gqa=self.heads != self.groups
        )
        return add_linear(residual, out.transpose(1, 2).flatten(-2), self.o_proj)


class MLP(nn.Module):
    """The gated feed-forward part of a Llama layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        bias = getattr(config, "mlp_bias", False)
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)
        self._gate_and_up = Joined(self.gate_proj, self.up_proj)
        activations = require("transformers.activations", "speculative")
        self.activation = activations.ACT2FN[config.hidden_act]

    def forward(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return the residual [B, n, D] plus the feed-forward part of x."""
        gate, up = self._gate_and_up(x).chunk(2, dim=-1)
        return add_linear(residual, self.activation(gate) * up, self.down_proj)


def rotation_rows(cos: Tensor, sin: Tensor) -> Tensor:
    """Return the entries that the `rotations` of positions have: [n, 2 head_dim + 1].

    cos, sin: [n, head_dim], as Llama's rotary embedding gives them.
    """
    first, second = sin.chunk(2, dim=-1)
    return torch.cat((cos, -first, second, torch.zeros_like(sin[:, :1])), dim=-1)


def rotations(rows: Tensor, positions: Tensor) -> Tensor:
    """Return the matrices of positions int64 [B, n]: [B, n, head_dim, head_dim].

    A head of a token times its position's matrix is the rotated head, so one product rotates all
    heads of q and k. Column i is paired with column i + head_dim / 2. rows: `rotation_rows` of the
    positions 0, 1, ..
    """
    return rows[positions[:, :, None, None], matrix_entries(rows.shape[1] // 2, rows.device)]


@once
def matrix_entries(dim: int, device: torch.device) -> Tensor:
    """Return where in `rotation_rows` each entry of a matrix is, the constant int64 [dim, dim].

    Captured graphs read it, so it is never freed.
    """
    columns = torch.arange(dim, device=device)[None]
    zeros = torch.full((dim, dim), 2 * dim, device=device)
    with_cosines = zeros.scatter_(0, columns, columns)
    return with_cosines.scatter_(0, columns.roll(dim // 2), dim + columns)
