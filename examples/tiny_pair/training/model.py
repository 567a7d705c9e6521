# SPDX-License-Identifier: Apache-2.0
"""A small Llama and its EAGLE draft, with the parameter names of the public checkpoints."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Takes the keys and values of new positions; returns those of all visible positions.
Keep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Config:
    """The fields of a Hugging Face Llama config that define the model's shape."""

    vocab_size: int = 131072
    hidden_size: int = 160
    intermediate_size: int = 432
    num_hidden_layers: int = 4
    num_attention_heads: int = 5
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def to_hf(self) -> dict[str, object]:
        """Return the whole config.json."""
        return asdict(self) | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "head_dim": self.head_dim,
            "num_key_value_heads": self.num_attention_heads,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "float32",
        }


def rope(config: Config, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each [positions, head_dim]."""
    exponent = torch.arange(0, config.head_dim, 2, device=positions.device) / config.head_dim
    angles = positions[:, None] / config.rope_theta**exponent
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding; a head's two halves are paired, as in Llama checkpoints."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class RMSNorm(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, keep: Keep | None
    ) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        if keep is not None:
            k, v = keep(k, v)
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A Llama layer; EAGLE's draft omits the norm before attention."""

    def __init__(self, config: Config, normed: bool = True) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config) if normed else nn.Identity()
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, keep: Keep | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, keep)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The target. Its embedding is also its LM head, which the callers apply."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, sparse=True)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)
        # Matrices that write to the residual stream start smaller; each layer has two.
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                deep = (2 * config.num_hidden_layers) ** -0.5
                nn.init.normal_(parameter, std=0.02 * (deep if writes else 1.0))

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        start: int = 0,
        keeps: Sequence[Keep] | None = None,
    ) -> Tensor:
        """Return the features after the final norm, [rows, length, hidden].

        The mask is True where a position may look; without a mask, attention is causal. The first
        token's position is `start`. `keeps` has a cache's `keep` for every layer.
        """
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        cos, sin = rope(self.config, positions)
        x = self.embed_tokens(tokens)
        none: list[Keep | None] = [None] * len(self.layers)
        for layer, keep in zip(self.layers, keeps or none, strict=True):
            x = layer(x, cos, sin, mask, keep)
        return self.norm(x)


class Draft(nn.Module):
    """EAGLE's draft: predicts a token's feature from the token and the feature before it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=True)
        self.layers = nn.ModuleList([Layer(config, normed=False)])

    def forward(self, embedded: Tensor, features: Tensor, mask: Tensor, keep: Keep) -> Tensor:
        """Return the predicted features of pairs from position 0 on."""
        cos, sin = rope(self.config, torch.arange(embedded.shape[1], device=embedded.device))
        x = self.fc(torch.cat((embedded, features), dim=-1))
        return self.layers[0](x, cos, sin, mask, keep)
