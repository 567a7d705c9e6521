# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with MTP modules, named as the public ones, and their computation in fp64."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from microspec_kernels.speculative import CausalModel

from .formula import Formula
from .models import SIZE, VOCAB

HEADS, GROUPS, DIM, INNER, EXPERTS, NARROW = 4, 2, 8, 40, 4, 12
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": SIZE, "intermediate_size": INNER, "hidden_act": "silu",
    "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": DIM,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}  # fmt: skip
SIGMOID = {
    "n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": NARROW,
    "n_shared_experts": 1, "routed_scaling_factor": 1.5, "norm_topk_prob": True, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 3, "num_nextn_predict_layers": 1,
}  # fmt: skip
SOFTMAX = {
    "num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": NARROW,
    "norm_topk_prob": True,
}  # fmt: skip
GLM = {
    **COMMON, **SIGMOID, "model_type": "glm4_moe", "num_hidden_layers": 46, "attention_bias": True,
    "partial_rotary_factor": 0.5, "use_qk_norm": True,
}  # fmt: skip
QWEN = {**COMMON, "num_hidden_layers": 48, "partial_rotary_factor": 0.5}
CONFIGS: dict[str, dict[str, Any]] = {
    "glm": GLM,
    "glm-dense": {**GLM, "use_qk_norm": False},
    "deepseek": {
        **{field: value for field, value in COMMON.items() if field != "head_dim"}, **SIGMOID,
        "model_type": "deepseek_v3", "num_hidden_layers": 61, "num_key_value_heads": HEADS,
        "q_lora_rank": 14, "kv_lora_rank": 18,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 10, "rope_interleave": True,
    },
    "qwen3-next": {
        **QWEN, **SOFTMAX, "model_type": "qwen3_next", "shared_expert_intermediate_size": NARROW,
    },
    "qwen3.5": {
        "model_type": "qwen3_5", "vision_config": {},
        "text_config": {**QWEN, "model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1},
    },
    "mellum": {
        **COMMON, **SOFTMAX, "model_type": "mellum", "num_hidden_layers": 28, "sliding_window": 5,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "mimo": {
        **COMMON, "model_type": "mimo", "num_hidden_layers": 36, "num_nextn_predict_layers": 1,
        "sliding_window": 99, "use_sliding_window": False, "max_window_layers": 36,
        "auto_map": {"AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM"},
    },
}  # fmt: skip
# For each: prefix, prefix of the layer, and the names of enorm, hnorm, eh_proj and norm.
DEEPSEEK = "", "enorm", "hnorm", "eh_proj", "shared_head.norm"
NAMES: dict[str, tuple[str, ...]] = {
    "glm": ("model.layers.46.", *DEEPSEEK),
    "glm-dense": ("model.layers.46.", *DEEPSEEK),
    "deepseek": ("model.layers.61.", *DEEPSEEK),
    "mimo": (
        "model.mtp_layers.0.", "", "token_layernorm", "hidden_layernorm", "input_proj",
        "final_layernorm",
    ),
}  # fmt: skip
QWENS = "mtp.", "layers.0.", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm"
NAMES |= dict.fromkeys(("qwen3-next", "qwen3.5", "mellum"), QWENS)


def fields_of(name: str) -> dict[str, Any]:
    """Return the fields of the language model."""
    return {**CONFIGS[name], **CONFIGS[name].get("text_config", {})}


def tensors(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Make a random module of that name, with the names of its tensors in public checkpoints."""
    fields, (prefix, layer, enorm, hnorm, project, norm) = fields_of(name), NAMES[name]
    gated = 2 if name.startswith("qwen") else 1
    shapes: dict[str, tuple[int, ...]] = {
        f"{enorm}.weight": (SIZE,), f"{hnorm}.weight": (SIZE,), f"{norm}.weight": (SIZE,),
        f"{project}.weight": (SIZE, 2 * SIZE),
    }  # fmt: skip
    inside: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (SIZE,), "post_attention_layernorm.weight": (SIZE,),
    }  # fmt: skip
    if name == "deepseek":
        rank, both = fields["kv_lora_rank"], fields["qk_nope_head_dim"]
        inside |= {
            "self_attn.q_a_proj.weight": (14, SIZE), "self_attn.q_a_layernorm.weight": (14,),
            "self_attn.q_b_proj.weight": (HEADS * 10, 14),
            "self_attn.kv_a_proj_with_mqa.weight": (rank + 4, SIZE),
            "self_attn.kv_a_layernorm.weight": (rank,),
            "self_attn.kv_b_proj.weight": (HEADS * (both + 10), rank),
            "self_attn.o_proj.weight": (SIZE, HEADS * 10),
        }  # fmt: skip
    else:
        sizes = {"q": HEADS * gated, "k": GROUPS, "v": GROUPS}
        inside |= {f"self_attn.{n}_proj.weight": (s * DIM, SIZE) for n, s in sizes.items()}
        inside["self_attn.o_proj.weight"] = (SIZE, HEADS * DIM)
        if name.startswith("glm") or name == "mimo":
            inside |= {f"self_attn.{n}_proj.bias": (s * DIM,) for n, s in sizes.items()}
        if fields.get("use_qk_norm") or prefix == "mtp.":
            inside |= {f"self_attn.{n}_norm.weight": (DIM,) for n in "qk"}
    if "num_experts_per_tok" in fields and name != "glm-dense":
        for expert in range(EXPERTS):
            inside |= mlp(f"mlp.experts.{expert}", NARROW)
        inside["mlp.gate.weight"] = (EXPERTS, SIZE)
        if "n_group" in fields:
            inside |= {"mlp.gate.e_score_correction_bias": (EXPERTS,)}
            inside |= mlp("mlp.shared_experts", NARROW)
        elif name == "qwen3-next":
            inside |= {"mlp.shared_expert_gate.weight": (1, SIZE)}
            inside |= mlp("mlp.shared_expert", NARROW)
    else:
        inside |= mlp("mlp", INNER)
    shapes |= {layer + part: shape for part, shape in inside.items()}
    if prefix.startswith("model.layers."):
        shapes |= {"embed_tokens.weight": (VOCAB, SIZE), "shared_head.head.weight": (VOCAB, SIZE)}
    values, centred = torch.Generator().manual_seed(seed), name.startswith("qwen")
    return {
        prefix + part: 0.3 * torch.randn(shape, generator=values)
        + ("norm" in part and not centred)
        for part, shape in shapes.items()
    }  # fmt: skip


def mlp(name: str, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.gate_proj.weight": (inner, SIZE), f"{name}.up_proj.weight": (inner, SIZE),
        f"{name}.down_proj.weight": (SIZE, inner),
    }  # fmt: skip


def write(folder: Path, name: str, state: dict[str, Tensor], **changes: Any) -> Path:
    """Write the checkpoint to `folder`; `changes` edit the fields of the language model."""
    config = CONFIGS[name]
    if "text_config" in config:
        config = {**config, "text_config": {**config["text_config"], **changes}}
    else:
        config = {**config, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    return folder


class Plain:
    """The module of a checkpoint in fp64, token by token, from its tensors and config."""

    def __init__(self, name: str, state: dict[str, Tensor], target: CausalModel) -> None:
        self.name, self.fields = name, fields_of(name)
        prefix, self.layer, *self.parts = NAMES[name]
        self.state = {part.removeprefix(prefix): value for part, value in state.items()}
        self.formula = Formula(self.state, self.fields)
        head = self.state.get("shared_head.head.weight", target.lm_head.weight)
        self.head = head.double()
        self.embedding = self.state.get("embed_tokens.weight", target.embedding).double()

    def norm(self, name: str, x: Tensor) -> Tensor:
        normed = x / (x.square().mean(-1, keepdim=True) + self.fields["rms_norm_eps"]).sqrt()
        weight = self.state[f"{name}.weight"].double()
        return normed * (1 + weight if self.name.startswith("qwen") else weight)

    def features(self, tokens: Tensor, before: Tensor) -> Tensor:
        """Compute the features [n, D] of tokens int64 [n] from the preceding tokens' features."""
        enorm, hnorm, project, norm = self.parts
        read = [self.norm(enorm, self.embedding[tokens]), self.norm(hnorm, before.double())]
        if self.name == "mimo":
            read.reverse()
        x = self.formula.linear(project, torch.cat(read, dim=-1))
        attention = self.latent_attention if self.name == "deepseek" else self.attention
        x = x + attention(self.norm(f"{self.layer}input_layernorm", x))
        normed = self.norm(f"{self.layer}post_attention_layernorm", x)
        return self.norm(norm, x + torch.stack([self.mlp(row) for row in normed]))

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.head.T

    def attention(self, x: Tensor) -> Tensor:
        name = f"{self.layer}self_attn"
        q, k, v = (self.formula.linear(f"{name}.{part}_proj", x) for part in "qkv")
        gate = None
        if self.name.startswith("qwen"):
            q, gate = (part.flatten(1) for part in q.unflatten(1, (HEADS, 2 * DIM)).split(DIM, 2))
        q, k, v = (part.unflatten(1, (-1, DIM)) for part in (q, k, v))
        if f"{name}.q_norm.weight" in self.state:
            q, k = self.norm(f"{name}.q_norm", q), self.norm(f"{name}.k_norm", k)
        turned = int(DIM * self.fields.get("partial_rotary_factor", 1))
        q, k = (torch.cat((rotated(p[..., :turned]), p[..., turned:]), dim=-1) for p in (q, k))
        share = HEADS // GROUPS
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        out = self.attended(q, k, v, DIM)
        return self.formula.linear(f"{name}.o_proj", out if gate is None else out * gate.sigmoid())

    def latent_attention(self, x: Tensor) -> Tensor:
        """Compute MLA: keys and values of all heads come from one latent row a token."""
        name, linear = f"{self.layer}self_attn", self.formula.linear
        # transformers, as DeepSeek, leaves the eps of these two at its default.
        inner = Formula(self.state, {"rms_norm_eps": 1e-6})
        q = inner.norm(f"{name}.q_a_layernorm", linear(f"{name}.q_a_proj", x))
        q = linear(f"{name}.q_b_proj", q).unflatten(1, (HEADS, 10))
        latent, key = linear(f"{name}.kv_a_proj_with_mqa", x).split((18, 4), dim=1)
        latent = linear(f"{name}.kv_b_proj", inner.norm(f"{name}.kv_a_layernorm", latent))
        k, v = latent.unflatten(1, (HEADS, 16)).split((6, 10), dim=2)
        # Pairs of neighbours turn; the order of columns does not matter to the product.
        pairs = [0, 2, 1, 3]
        key = rotated(key[:, None, pairs]).expand(-1, HEADS, -1)
        q = torch.cat((q[..., :6], rotated(q[..., 6:][..., pairs])), dim=-1)
        return linear(f"{name}.o_proj", self.attended(q, torch.cat((k, key), dim=-1), v, 10))

    def attended(self, q: Tensor, k: Tensor, v: Tensor, dim: int) -> Tensor:
        """Attend from q [n, heads, dim] to the text before, or to the window: [n, heads * ..]."""
        window = self.fields.get("sliding_window") if self.name == "mellum" else None
        rows = []
        for row in range(len(q)):
            seen = slice(0 if window is None else max(0, row + 1 - window), row + 1)
            weights = torch.einsum("hd,nhd->hn", q[row], k[seen]) / math.sqrt(dim)
            rows.append(torch.einsum("hn,nhd->hd", weights.softmax(-1), v[seen]).flatten())
        return torch.stack(rows)

    def mlp(self, x: Tensor) -> Tensor:
        name = f"{self.layer}mlp"
        if f"{name}.gate.weight" not in self.state:
            return self.gated(name, x)
        scores = self.state[f"{name}.gate.weight"].double() @ x
        if bias := "n_group" in self.fields:
            scores = scores.sigmoid()
            ranks = scores + self.state[f"{name}.gate.e_score_correction_bias"].double()
            halves = ranks.unflatten(0, (2, 2))
            worst = int(halves.sum(1).argmin())
            ranks = halves.index_fill(0, torch.tensor([worst]), -torch.inf).flatten()
        else:
            scores = ranks = scores.softmax(-1)
        chosen = ranks.topk(2).indices
        weights = scores[chosen] / scores[chosen].sum()
        weights = weights * self.fields.get("routed_scaling_factor", 1.0)
        out = sum(
            weight * self.gated(f"{name}.experts.{expert}", x)
            for weight, expert in zip(weights, chosen.tolist(), strict=True)
        )
        if bias:
            return out + self.gated(f"{name}.shared_experts", x)
        if self.name == "qwen3-next":
            gate = (self.state[f"{name}.shared_expert_gate.weight"].double() @ x).sigmoid()
            return out + gate * self.gated(f"{name}.shared_expert", x)
        assert isinstance(out, Tensor)
        return out

    def gated(self, name: str, x: Tensor) -> Tensor:
        gate = self.formula.linear(f"{name}.gate_proj", x)
        up = self.formula.linear(f"{name}.up_proj", x)
        return self.formula.linear(f"{name}.down_proj", gate * gate.sigmoid() * up)

    def chain(self, text: Tensor, before: Tensor, depth: int) -> list[int]:
        """Return the chain of likeliest tokens after text int64 [n]."""
        chain = []
        for _ in range(depth):
            features = self.features(text, before)
            chain.append(int(self.logits(features)[-1].argmax()))
            text = torch.cat((text, torch.tensor(chain[-1:])))
            before = torch.cat((before, features[-1:].to(before.dtype)))
        return chain


def rotated(x: Tensor) -> Tensor:
    """Rotate x [n, heads, dim] by its position, column i with column i + dim / 2."""
    half = x.shape[-1] // 2
    angles = torch.arange(len(x))[:, None] / 10000.0 ** (torch.arange(half) / half).double()
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    left, right = x[..., :half], x[..., half:]
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
