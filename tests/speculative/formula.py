# SPDX-License-Identifier: Apache-2.0
"""EAGLE's layers in fp64, head by head and without a cache, from a checkpoint's tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Formula:
    """The layers of one checkpoint.

    `state` holds its tensors, `config` the Llama fields that the layers need.
    """

    state: Mapping[str, Tensor]
    config: Mapping[str, Any]

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.state.get(f"{name}.bias", torch.zeros(()))
        return x @ self.state[f"{name}.weight"].double().T + bias.double()

    def norm(self, name: str, x: Tensor) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt()
        return x / scale * self.state[f"{name}.weight"].double()

    def layer(self, name: str, inputs: Tensor, residual: Tensor) -> Tensor:
        """Compute a Llama layer.

        Its attention reads `inputs` [n, ..] and adds to `residual` [n, D].
        """
        x = residual + self.attention(f"{name}.self_attn", inputs)
        normed = self.norm(f"{name}.post_attention_layernorm", x)
        gate = self.linear(f"{name}.mlp.gate_proj", normed)
        inner = gate * gate.sigmoid() * self.linear(f"{name}.mlp.up_proj", normed)
        return x + self.linear(f"{name}.mlp.down_proj", inner)

    def attention(self, name: str, x: Tensor) -> Tensor:
        heads, groups = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        q, k, v = (self.linear(f"{name}.{part}_proj", x) for part in "qkv")
        dim, window = q.shape[1] // heads, self.config.get("sliding_window") or len(x)
        if f"{name}.q_norm.weight" in self.state:
            q, k = (
                self.norm(f"{name}.{part}_norm", part_of.unflatten(1, (-1, dim))).flatten(1)
                for part, part_of in (("q", q), ("k", k))
            )
        attended = []
        for row in range(len(x)):
            outs = []
            for head in range(heads):
                group = head // (heads // groups)
                head_columns = slice(head * dim, (head + 1) * dim)
                shared = slice(group * dim, (group + 1) * dim)
                query = self.turned(q[row, head_columns], row)
                seen = range(max(0, row + 1 - window), row + 1)
                keys = torch.stack([self.turned(k[i, shared], i) for i in seen])
                weights = (keys @ query / math.sqrt(dim)).softmax(0)
                outs.append(weights @ v[seen.start : seen.stop, shared])
            attended.append(torch.cat(outs))
        return self.linear(f"{name}.o_proj", torch.stack(attended))

    def turned(self, x: Tensor, position: int) -> Tensor:
        half, theta = len(x) // 2, self.config.get("rope_theta", 10000.0)
        out = x.clone()
        for i in range(half):
            angle = position / theta ** (2 * i / len(x))
            out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
            out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
        return out
