"""The draft models: EAGLE-1/2's one layer on the target's features, or a small model of its own."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import KVCache, causal, visible
from .extra import require
from .model import CHUNK, CausalModel


class Draft(Protocol):
    """What the loop asks of a draft.

    A draft's feature of a token, times `head_weight` [V, D] (+ `head_bias` [V]), gives the logits
    of the token after it.
    """

    head_weight: Tensor
    head_bias: Tensor | None

    def new_cache(self) -> KVCache:
        """An empty cache for one sequence."""
        ...

    def extend(self, tokens: Tensor, hidden: Tensor, cache: KVCache) -> Tensor:
        """Read text: tokens int64 [n], all that the draft has not seen, up to the newest.

        `hidden` [m, D] are the target's features of the tokens *before* the last m of these, that
        is, those from which it chose them. Returns the draft's feature of the newest, [1, D].
        """
        ...

    def step(self, tokens: Tensor, parents: Tensor, lineage: Tensor, cache: KVCache) -> Tensor:
        """Read nodes of a tree: tokens int64 [n], the draft's features [n, D] of their parents.

        `lineage` as in `cache.visible`. Returns the nodes' features [n, D].
        """
        ...


class ModelDraft:
    """An ordinary causal LM that shares the target's vocabulary; it takes no features."""

    def __init__(self, model: Any) -> None:
        self.model = model if isinstance(model, CausalModel) else CausalModel(model)
        self.head_weight = self.model.head_weight
        self.head_bias = self.model.head_bias

    def new_cache(self) -> KVCache:
        return self.model.new_cache()

    def extend(self, tokens: Tensor, hidden: Tensor, cache: KVCache) -> Tensor:
        return self.model.prefill(tokens, cache)[-1:]

    def step(self, tokens: Tensor, parents: Tensor, lineage: Tensor, cache: KVCache) -> Tensor:
        return self.model.forward(tokens, lineage, cache)


class EagleDraft(nn.Module):
    """EAGLE-1/2 (arXiv 2401.15077, 2406.16858): predicts the target's next feature.

    The input at position i is fc(cat(embedding of token i+1, feature of token i)), the output the
    feature of token i+1: the target's features where text has been verified, the draft's own
    inside a tree. Parameters carry the names of the public checkpoints.

    `config` is the checkpoint's config.json as a `LlamaConfig`; `target` lends its embedding and
    its LM head, and gives the device and the dtype.

    Raises ValueError: the hidden or the vocabulary size differs from the target's.
    """

    def __init__(self, config: Any, target: CausalModel) -> None:
        super().__init__()
        for name in ("hidden_size", "vocab_size"):
            got, expected = getattr(config, name), getattr(target, name)
            if got != expected:
                raise ValueError(f"EagleDraft: {name}: expected the target's {expected}, got {got}")
        size = config.hidden_size
        # Lent, not owned: plain tensors are no part of this module's state.
        self.embedding = target.embedding
        self.head_weight, self.head_bias = target.head_weight, target.head_bias
        self.fc = nn.Linear(2 * size, size, bias=getattr(config, "bias", True))
        self.layers = nn.ModuleList(
            EagleLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.to(device=target.device, dtype=target.dtype)
        # After the cast: in half precision its frequencies would lose the positions.
        llama = require("transformers.models.llama.modeling_llama")
        self.rotary: nn.Module = llama.LlamaRotaryEmbedding(config).to(target.device)

    def new_cache(self) -> KVCache:
        return KVCache(len(self.layers))

    def extend(self, tokens: Tensor, hidden: Tensor, cache: KVCache) -> Tensor:
        # The first token of a text has no feature before it, so nothing stands for it here.
        texts = torch.split(tokens[-len(hidden) :], CHUNK)
        for piece, features in zip(texts, torch.split(hidden, CHUNK), strict=True):
            last = self.step(piece, features, causal(len(piece), piece.device), cache)[-1:]
        return last

    def step(self, tokens: Tensor, parents: Tensor, lineage: Tensor, cache: KVCache) -> Tensor:
        mask, positions = visible(lineage, cache.length + len(tokens))
        x: Tensor = self.fc(torch.cat((F.embedding(tokens, self.embedding), parents), dim=-1))[None]
        rotation = self.rotary(x, positions[None])
        for layer in self.layers:
            x = layer(x, rotation, mask, cache)
        cache.advance(len(tokens))
        return x[0]


class EagleLayer(nn.Module):
    """A Llama decoder layer; the first has no norm before its attention."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(size, eps) if index else nn.Identity()
        self.self_attn = Attention(config, index)
        self.post_attention_layernorm = nn.RMSNorm(size, eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, cache: KVCache
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, cache)
        after: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return after


class Attention(nn.Module):
    """Grouped-query attention over the cache, under a mask."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        size = config.hidden_size
        # Qwen2's drafts have biases on q, k and v alone; `attention_bias` is Llama's, on all four.
        every = getattr(config, "attention_bias", False)
        qkv = getattr(config, "qkv_bias", every)
        self.index = index
        self.head_dim = dim
        self.q_proj = nn.Linear(size, heads * dim, bias=qkv)
        self.k_proj = nn.Linear(size, groups * dim, bias=qkv)
        self.v_proj = nn.Linear(size, groups * dim, bias=qkv)
        self.o_proj = nn.Linear(heads * dim, size, bias=every)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, cache: KVCache
    ) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        keys, values = cache.update(rotate(k, *rotation), v, self.index)
        # [1, heads, n, head_dim]; key and value heads are shared by groups of query heads.
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
        self.activation = require("transformers.activations").ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [1, heads, n, head_dim] by cos, sin [1, n, head_dim], in halves."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
