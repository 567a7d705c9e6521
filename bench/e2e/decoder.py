# SPDX-License-Identifier: Apache-2.0
"""Decoder layers of a model's real sizes over a batch of texts, for capture in a CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.draft_layer import THETA, attention, gated, merge, rotate
from bench.harness.inputs import make_weight
from bench.harness.models import Model

Matrices = list[list[Tensor]]  # of each layer: qkv, out, gate with up, down


def matrices(model: Model, layers: int, device: str) -> Matrices:
    """Make the random matrices of some layers, fused as serving engines fuse them."""
    shapes = model.draft_products()[1:]
    return [[make_weight(out, size, device) for out, size in shapes] for _ in range(layers)]


class Decoder:
    """Layers with a cache of `context` tokens and `room` more for each text.

    As in bench.draft, FlashAttention reads the context without a mask, and the tokens in the room
    come in by their own small attention. The newest entries lie first in the room, as in the loop's
    cache, so that a pass sees one range of columns: its own, then those before it.

    fuse: whether to compile the small operations between the products to one kernel each.
    """

    def __init__(
        self,
        model: Model,
        layers: Matrices,
        texts: int,
        context: int,
        room: int,
        fuse: bool = False,
    ) -> None:
        device = layers[0][0].device
        self.model, self.layers, self.texts, self.context = model, layers, texts, context
        shape = len(layers), texts * model.kv_heads, context + room, model.head_dim
        self.keys, self.values = (
            torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2)
        )
        self.norm = torch.ones(model.dim, dtype=torch.bfloat16, device=device)
        frequencies = THETA ** -(torch.arange(0, model.head_dim, 2) / model.head_dim)
        angles = torch.outer(torch.arange(context + room), frequencies).repeat(1, 2)[:, None]
        self.cos, self.sin = (f(angles).bfloat16().to(device) for f in (torch.cos, torch.sin))
        pieces: tuple[Callable[..., Any], ...] = (rotate, merge, gated)
        if fuse:
            torch._dynamo.config.recompile_limit = 1024
            pieces = tuple(torch.compile(piece, dynamic=False) for piece in pieces)
        self._rotate, self._merge, self._gated = pieces

    def __call__(self, x: Tensor, depths: Tensor, mask: Tensor) -> Tensor:
        """Return the layers' output [B, n, D] for inputs x [B, n, D].

        depths: int64 [B, n], how many tokens behind the context each one is.
        mask: bool [B, n, columns], which of the last columns of the room each one sees. The first n
            of these columns are theirs.
        """
        texts, n, columns = mask.shape
        model = self.model
        at = self.context + depths.flatten()
        cos, sin = self.cos[at], self.sin[at]
        group = model.heads // model.kv_heads
        hidden = torch.zeros(mask.shape, device=x.device).masked_fill_(~mask, -torch.inf)
        hidden = hidden[:, None, None].expand(-1, model.kv_heads, group, -1, -1)
        hidden = hidden.reshape(texts * model.kv_heads, group * n, columns)
        x = x.flatten(0, 1)
        for index in range(len(self.layers)):
            x = self._layer(index, x, cos, sin, hidden)
        return x.view(texts, n, -1)

    def _layer(self, index: int, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        model, texts = self.model, self.texts
        qkv_weight, out, gate_up, down = self.layers[index]
        keys, values = self.keys[index], self.values[index]
        size, heads, n = model.head_dim, model.heads, len(x) // texts
        qkv = F.linear(self._normed(x), qkv_weight).view(len(x), -1, size)
        turned = self._rotate(qkv[:, : heads + model.kv_heads], cos, sin)
        # [B n, heads, d] → [B heads, n, d]; query heads that share a key head become its rows.
        rows = turned.view(texts, n, -1, size).transpose(1, 2)
        q = rows[:, :heads].reshape(texts * model.kv_heads, -1, size)
        first = keys.size(1) - mask.size(2)
        own = slice(first, first + n)
        by_text = (texts, model.kv_heads, -1, size)
        keys[:, own].view(by_text).copy_(rows[:, heads:])
        new_values = qkv[:, heads + model.kv_heads :].view(texts, n, -1, size).transpose(1, 2)
        values[:, own].view(by_text).copy_(new_values)
        seen, seen_lse = attention(q, keys[:, : self.context], values[:, : self.context])
        mixed = self._merge(seen, seen_lse, q, keys[:, first:], values[:, first:], mask)
        mixed = mixed.view(texts, heads, n, size).transpose(1, 2).reshape(len(x), -1)
        x = x + F.linear(mixed, out)
        inner = F.linear(self._normed(x), gate_up)
        return x + F.linear(self._gated(inner), down)

    def _normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.model.dim,), self.norm, 1e-5)

    def keep(self, paths: Tensor, room: int) -> None:
        """Move accepted entries of a pass of `room` tokens, int64 [B, m], behind the text.

        They replace the newest m tokens of the context, so that every step has the same sizes.
        """
        kept = paths.shape[1]
        rows = paths.repeat_interleave(self.model.kv_heads, dim=0)[None, :, :, None]
        place = slice(self.context - kept, self.context)
        for entries in (self.keys, self.values):
            new = entries[:, :, -room:]
            shape = (*new.shape[:2], kept, new.shape[3])
            entries[:, :, place] = new.gather(2, rows.expand(shape))
