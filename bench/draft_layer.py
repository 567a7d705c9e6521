"""EAGLE-2's draft layer at a model's real sizes, with random weights, in a form a graph can hold.

Nothing in it depends on values, every size is fixed: what is captured once serves every step.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .head_arms import make_weight
from .models import Model

THETA = 500000.0  # of the rotation; no figure depends on it


def weights(model: Model, device: str = "cpu") -> list[Tensor]:
    return [make_weight(out, size, device) for out, size in model.draft_products()]


def products(
    model: Model, rows: int, device: str = "cpu", shared: list[Tensor] | None = None
) -> Callable[[], None]:
    """The layer's matrix products alone: what flushes the caches between two calls of the head."""
    pairs = [
        (torch.ones(rows, weight.size(1), dtype=weight.dtype, device=device), weight)
        for weight in shared or weights(model, device)
    ]

    def run() -> None:
        for x, weight in pairs:
            F.linear(x, weight)

    return run


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Of q [heads, n, d] over k, v [heads, length, d], all visible; with the logsumexp [heads, n].

    PyTorch's own FlashAttention, which on a GPU splits a long context over the multiprocessors.
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
    """Adds to attention over the context that over a few more tokens, which ``mask`` lets see."""
    scores = (q @ k.transpose(1, 2)).float() * q.size(-1) ** -0.5 + mask
    lse = scores.logsumexp(-1)
    both = torch.logaddexp(lse, context_lse)
    own = (scores - both[..., None]).exp().to(v.dtype) @ v
    return own + context * (context_lse - both).exp()[..., None].to(v.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [n, heads, d] by cos, sin [n, 1, d], in halves."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def gated(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


class DraftLayer:
    """fc, attention over a context and the draft's own tokens, gated MLP.

    The cache holds ``context`` verified tokens and room for ``own`` more: those just accepted and
    the tree's. Verified tokens are visible to all, so the context goes through FlashAttention
    without a mask, and only the few others need one, as engines do it. Query heads that share a
    key head are rows of one head: no key is read twice. With ``fuse``, the small operations between
    the products are compiled to a kernel each. The embedding [V, D] is the target's.
    """

    def __init__(
        self, model: Model, embedding: Tensor, context: int, own: int, fuse: bool = False
    ) -> None:
        device = embedding.device.type
        self.model, self.embedding, self.context = model, embedding, context
        self.fc, self.qkv, self.out, self.gate_up, self.down = weights(model, device)
        shape = (model.kv_heads, context + own, model.head_dim)
        self.keys = torch.randn(shape, device=device).bfloat16()
        self.values = torch.randn(shape, device=device).bfloat16()
        self.norm = torch.ones(model.dim, dtype=torch.bfloat16, device=device)
        frequencies = THETA ** -(torch.arange(0, model.head_dim, 2) / model.head_dim)
        angles = torch.outer(torch.arange(context + own), frequencies).repeat(1, 2)[:, None]
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
        """Features [n, D] of nodes from their tokens [n] and their parents' features [n, D].

        Args:
            first: where among the cache's own tokens these are put; those before are kept.
            depth: how far behind the context the positions are; one for all, or, of text
                (``first`` = 0), the first of consecutive ones.
            mask: fp32 [n, own], 0 where a node sees one of the own tokens and -inf elsewhere.
            out: where the features go.
        """
        model, n = self.model, len(tokens)
        x = F.linear(torch.cat((self.embedding[tokens], features), dim=-1), self.fc)
        qkv = F.linear(x, self.qkv).view(n, -1, model.head_dim)
        at = self.context + depth
        places = slice(at, at + n) if first == 0 else slice(at, at + 1)
        turned = self._rotate(
            qkv[:, : model.heads + model.kv_heads], self.cos[places], self.sin[places]
        )
        end = self.context + first + n
        self.keys[:, end - n : end] = turned[:, model.heads :].transpose(0, 1)
        self.values[:, end - n : end] = qkv[:, model.heads + model.kv_heads :].transpose(0, 1)
        # [n, heads, d] → [kv_heads, heads a kv head · n, d]
        group = model.heads // model.kv_heads
        q = turned[:, : model.heads].unflatten(1, (model.kv_heads, group))
        q = q.permute(1, 2, 0, 3).reshape(model.kv_heads, group * n, model.head_dim)
        split = self.context
        seen, seen_lse = attention(q, self.keys[:, :split], self.values[:, :split])
        own_keys, own_values = self.keys[:, split:], self.values[:, split:]
        mixed = self._merge(seen, seen_lse, q, own_keys, own_values, mask.repeat(group, 1))
        mixed = mixed.view(model.kv_heads, group, n, model.head_dim).permute(2, 0, 1, 3)
        x = x + F.linear(mixed.reshape(n, -1), self.out)
        inner = F.linear(F.rms_norm(x, (model.dim,), self.norm, 1e-5), self.gate_up)
        torch.add(x, F.linear(self._gated(inner), self.down), out=out)
