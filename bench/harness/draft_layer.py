# SPDX-License-Identifier: Apache-2.0
"""EAGLE-2's draft layer at a model's real sizes, with random weights, for capture in a CUDA graph.

Every size is fixed and nothing depends on values, so one captured graph serves every step.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import make_weight
from .models import Model

THETA = 500000.0  # base of the rotary frequencies; no figure depends on it


def weights(model: Model, device: str = "cpu") -> list[Tensor]:
    """Make the layer's matrices."""
    return [make_weight(out, size, device) for out, size in model.draft_products()]


def products(
    model: Model, rows: int, device: str = "cpu", shared: list[Tensor] | None = None
) -> Callable[[], None]:
    """Return a function that runs the layer's matrix products alone.

    They flush the caches between two calls of the head.
    """
    pairs = [
        (torch.ones(rows, weight.size(1), dtype=weight.dtype, device=device), weight)
        for weight in shared or weights(model, device)
    ]

    def run() -> None:
        for x, weight in pairs:
            F.linear(x, weight)

    return run


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attend with q [heads, n, d] to all of k, v [heads, length, d].

    PyTorch's FlashAttention does it; on a GPU that splits a long context over the multiprocessors.

    Returns:
        The output [heads, n, d] and the logsumexp [heads, n].
    """
    ops, inputs = torch.ops.aten, (q[None], k[None], v[None])
    if q.is_cuda:
        out, logsumexp = ops._scaled_dot_product_flash_attention(*inputs)[:2]
    else:
        out, logsumexp = ops._scaled_dot_product_flash_attention_for_cpu(*inputs)[:2]
    return out[0], logsumexp[0]


def merge(
    context: Tensor, context_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor
) -> Tensor:
    """Add attention to a few more tokens, which ``mask`` selects, to attention over the context."""
    scores = (q @ k.transpose(1, 2)).float() * q.size(-1) ** -0.5 + mask
    lse = scores.logsumexp(-1)
    both = torch.logaddexp(lse, context_lse)
    added = (scores - both[..., None]).exp().to(v.dtype) @ v
    return added + context * (context_lse - both).exp()[..., None].to(v.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding cos, sin [n, 1, d] to x [n, heads, d], in halves."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def gated(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


class DraftLayer:
    """The draft layer: fc, attention to the context and to the draft's tokens, gated MLP.

    The cache holds ``context`` verified tokens and has room for ``drafted`` more: the tokens just
    accepted and the tree's. All nodes see the verified tokens, so FlashAttention reads the context
    without a mask, as in engines; only the other tokens need one. Query heads that share a key head
    become rows of one head, so no key is read twice.

    Args:
        embedding: the target's [V, D].
        fuse: whether to compile the small operations between the products to one kernel each.
    """

    def __init__(
        self, model: Model, embedding: Tensor, context: int, drafted: int, fuse: bool = False
    ) -> None:
        device = embedding.device.type
        self.model, self.embedding, self.context = model, embedding, context
        self.fc, self.qkv, self.out, self.gate_up, self.down = weights(model, device)
        shape = (model.kv_heads, context + drafted, model.head_dim)
        self.keys = torch.randn(shape, device=device).bfloat16()
        self.values = torch.randn(shape, device=device).bfloat16()
        self.norm = torch.ones(model.dim, dtype=torch.bfloat16, device=device)
        frequencies = THETA ** -(torch.arange(0, model.head_dim, 2) / model.head_dim)
        angles = torch.outer(torch.arange(context + drafted), frequencies).repeat(1, 2)[:, None]
        self.cos = angles.cos().bfloat16().to(device)
        self.sin = angles.sin().bfloat16().to(device)
        pieces: tuple[Callable[..., Any], ...] = (rotate, merge, gated)
        if fuse:
            torch._dynamo.config.recompile_limit = 1024
            pieces = tuple(torch.compile(piece, dynamic=False) for piece in pieces)
        self._rotate, self._merge, self._gated = pieces

    def __call__(
        self,
        tokens: Tensor,
        features: Tensor,
        first: int,
        depth: int,
        mask: Tensor,
        out: Tensor,
    ) -> None:
        """Compute features [n, D] of nodes from their tokens [n] and parents' features [n, D].

        Args:
            first: the place of these tokens among the cache's drafted ones; those before it stay.
            depth: the distance of the positions from the context's end. All nodes share it; text
                (``first`` = 0) begins with it and continues one by one.
            mask: fp32 [n, drafted], 0 where a node sees a drafted token and -inf elsewhere.
            out: receives the features.
        """
        model, n = self.model, len(tokens)
        x = F.linear(torch.cat((self.embedding[tokens], features), dim=-1), self.fc)
        qkv = F.linear(x, self.qkv).view(n, -1, model.head_dim)
        at = self.context + depth
        positions = slice(at, at + n) if first == 0 else slice(at, at + 1)
        turned = self._rotate(
            qkv[:, : model.heads + model.kv_heads], self.cos[positions], self.sin[positions]
        )
        end = self.context + first + n
        self.keys[:, end - n : end] = turned[:, model.heads :].transpose(0, 1)
        self.values[:, end - n : end] = qkv[:, model.heads + model.kv_heads :].transpose(0, 1)
        # [n, heads, d] → [kv_heads, heads per kv head · n, d]
        group = model.heads // model.kv_heads
        q = turned[:, : model.heads].unflatten(1, (model.kv_heads, group))
        q = q.permute(1, 2, 0, 3).reshape(model.kv_heads, group * n, model.head_dim)
        split = self.context
        seen, seen_lse = attention(q, self.keys[:, :split], self.values[:, :split])
        drafted_keys, drafted_values = self.keys[:, split:], self.values[:, split:]
        mixed = self._merge(seen, seen_lse, q, drafted_keys, drafted_values, mask.repeat(group, 1))
        mixed = mixed.view(model.kv_heads, group, n, model.head_dim).permute(2, 0, 1, 3)
        x = x + F.linear(mixed.reshape(n, -1), self.out)
        inner = F.linear(F.rms_norm(x, (model.dim,), self.norm, 1e-5), self.gate_up)
        torch.add(x, F.linear(self._gated(inner), self.down), out=out)
