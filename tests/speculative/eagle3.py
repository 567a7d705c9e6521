# SPDX-License-Identifier: Apache-2.0
"""EAGLE-3 checkpoints with the names and configs of the public ones, and their formula."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from microspec_kernels.speculative import CausalModel

from .formula import Formula
from .models import SIZE, VOCAB

ROWS = 60
INNER = 40
HEADS, GROUPS = 4, 2

# From yuhuili/EAGLE3-LLaMA3.1-Instruct-8B, which stores a pytorch_model.bin.
OFFICIAL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 128000, "eos_token_id": 128001,
    "hidden_act": "silu", "hidden_size": SIZE, "initializer_range": 0.02,
    "intermediate_size": INNER, "max_position_embeddings": 2048, "model_type": "llama",
    "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "num_hidden_layers": 1,
    "pad_token_id": 0, "rms_norm_eps": 1e-05, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.28.1", "use_cache": True,
    "vocab_size": VOCAB, "draft_vocab_size": ROWS,
}  # fmt: skip

# From SpecForge's drafts for Qwen3. Its layer numbers name the layers whose outputs are read.
SPECFORGE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "eagle_config": {
        "eagle_aux_hidden_state_layer_ids": [0, 3, 4], "use_aux_hidden_state": True,
    },
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "draft_vocab_size": ROWS, "eos_token_id": 151645, "head_dim": 6, "hidden_act": "silu",
    "hidden_size": SIZE, "initializer_range": 0.02, "intermediate_size": INNER,
    "max_position_embeddings": 40960, "model_type": "llama", "num_attention_heads": HEADS,
    "num_hidden_layers": 1, "num_key_value_heads": GROUPS, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "rope_scaling": None, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
    "vocab_size": VOCAB,
}  # fmt: skip

# From `speculators`, for instance RedHatAI's drafts. Its layer numbers name the layers whose inputs
# are read.
SPECULATORS: dict[str, Any] = {
    "architectures": ["Eagle3DraftModel"], "draft_vocab_size": ROWS, "dtype": "bfloat16",
    "eagle_aux_hidden_state_layer_ids": [2, 3, 5], "embed_requires_grad": False,
    "norm_before_fc": False, "norm_before_residual": True,
    "speculators_config": {
        "algorithm": "eagle3", "default_proposal_method": "greedy",
        "proposal_methods": [{
            "accept_tolerance": 0.0, "proposal_type": "greedy", "speculative_tokens": 3,
            "verifier_accept_k": 1,
        }],
        "verifier": {"architectures": [], "name_or_path": "google/gemma-4-31B-it"},
    },
    "speculators_model_type": "eagle3", "speculators_version": "0.5.0", "target_hidden_size": None,
    "tie_word_embeddings": False,
    "transformer_layer_config": {
        "attention_bias": False, "head_dim": 6, "hidden_act": "silu", "hidden_size": SIZE,
        "intermediate_size": INNER, "max_position_embeddings": 262144, "model_type": "llama",
        "num_attention_heads": HEADS, "num_hidden_layers": 1, "num_key_value_heads": GROUPS,
        "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False, "vocab_size": VOCAB,
    },
}  # fmt: skip

# Its default layers, with a window.
QWEN3: dict[str, Any] = {
    **SPECULATORS,
    "transformer_layer_config": {
        **SPECULATORS["transformer_layer_config"], "layer_types": ["sliding_attention"],
        "max_window_layers": 28, "model_type": "qwen3", "sliding_window": 5,
        "use_sliding_window": True,
    },
}  # fmt: skip

# format: config, name of its layer, feature layers (by input) of a target with 7 layers
FORMATS: dict[str, tuple[dict[str, Any], str, list[int]]] = {
    "official": (OFFICIAL, "midlayer", [2, 3, 4]),
    "specforge": (SPECFORGE, "midlayer", [1, 4, 5]),
    "specforge-3.1": ({**SPECFORGE, "fc_norm": True, "norm_output": True}, "midlayer", [1, 4, 5]),
    "speculators": (SPECULATORS, "layers.0", [2, 3, 5]),
    "speculators-plain": (
        {**SPECULATORS, "norm_before_residual": False, "norm_before_fc": True},
        "layers.0",
        [2, 3, 5],
    ),
    "speculators-qwen3": (QWEN3, "layers.0", [2, 3, 5]),
}


def tensors(name: str, seed: int = 0, size: int = SIZE) -> dict[str, Tensor]:
    """Make a random checkpoint of that format: target of width SIZE, draft of width `size`."""
    config, layer, feature_layers = FORMATS[name]
    dim = config.get("transformer_layer_config", config).get("head_dim", size // HEADS)
    shapes: dict[str, tuple[int, ...]] = {
        f"{layer}.self_attn.q_proj": (HEADS * dim, 2 * size),
        f"{layer}.self_attn.k_proj": (GROUPS * dim, 2 * size),
        f"{layer}.self_attn.v_proj": (GROUPS * dim, 2 * size),
        f"{layer}.self_attn.o_proj": (size, HEADS * dim),
        f"{layer}.mlp.gate_proj": (INNER, size),
        f"{layer}.mlp.up_proj": (INNER, size),
        f"{layer}.mlp.down_proj": (size, INNER),
        f"{layer}.hidden_norm": (size,),
        f"{layer}.input_layernorm": (size,),
        f"{layer}.post_attention_layernorm": (size,),
        "norm": (size,),
        "fc": (size, len(feature_layers) * SIZE),
        "lm_head": (ROWS, size),
    }
    if config is QWEN3:
        shapes |= {f"{layer}.self_attn.{part}_norm": (dim,) for part in "qk"}
    if config.get("norm_before_fc"):
        shapes["input_norm"] = (len(feature_layers) * SIZE,)
    if config.get("fc_norm"):
        shapes |= {f"fc_norm.{i}": (SIZE,) for i in range(len(feature_layers))}
    if name.startswith("speculators"):
        shapes["embed_tokens"] = (VOCAB, size)
    values = torch.Generator().manual_seed(seed)
    state = {
        f"{part}.weight": 0.3 * torch.randn(shape, generator=values) + ("norm" in part)
        for part, shape in shapes.items()
    }
    tokens = torch.randperm(VOCAB, generator=values)[:ROWS].sort().values
    has_row = torch.zeros(VOCAB, dtype=torch.bool)
    has_row[tokens] = True
    return state | {"d2t": tokens - torch.arange(ROWS), "t2d": has_row}


def write(folder: Path, name: str, state: dict[str, Tensor], **changes: Any) -> Path:
    """Write the checkpoint to `folder`, in its format's kind of file; `changes` edit its config."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**FORMATS[name][0], **changes}))
    if name == "official":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    return folder


class Plain:
    """The computation of a checkpoint in fp64, from its tensors and config."""

    def __init__(self, name: str, state: dict[str, Tensor], target: CausalModel) -> None:
        self.config, self.layer, self.feature_layers = FORMATS[name]
        fields = self.config.get("transformer_layer_config", self.config)
        self.formula = Formula(state, fields)
        self.state = state
        self.embedding = state.get("embed_tokens.weight", target.embedding).double()
        self.tokens = torch.arange(ROWS) + state["d2t"]

    def fused(self, hidden_states: Any) -> Tensor:
        """Compute the draft's features [n, D] from all layers' hidden states, each [1, n, SIZE]."""
        parts = [hidden_states[layer][0].double() for layer in self.feature_layers]
        if self.config.get("fc_norm"):
            parts = [self.formula.norm(f"fc_norm.{i}", part) for i, part in enumerate(parts)]
        x = torch.cat(parts, dim=-1)
        if self.config.get("norm_before_fc"):
            x = self.formula.norm("input_norm", x)
        return self.formula.linear("fc", x)

    def features(self, tokens: Tensor, before: Tensor) -> Tensor:
        """Compute the features [n, D] of tokens int64 [n] from the preceding tokens' features."""
        normed = self.formula.norm(f"{self.layer}.hidden_norm", before)
        embedded = self.formula.norm(f"{self.layer}.input_layernorm", self.embedding[tokens])
        residual = normed if self.config.get("norm_before_residual") else before
        x = self.formula.layer(self.layer, torch.cat((embedded, normed), dim=-1), residual)
        return self.formula.norm("norm", x) if self.config.get("norm_output") else x

    def logits(self, features: Tensor) -> Tensor:
        """Compute the logits [n, ROWS] of the tokens `self.tokens`."""
        behind = self.config.get("norm_output")
        return self.formula.linear(
            "lm_head", features if behind else self.formula.norm("norm", features)
        )

    def chain(self, text: Tensor, before: Tensor, depth: int) -> list[int]:
        """Return the chain of likeliest tokens after text int64 [n]."""
        chain = []
        for _ in range(depth):
            features = self.features(text, before)
            token = self.tokens[self.logits(features)[-1].argmax()]
            chain.append(int(token))
            text, before = torch.cat((text, token[None])), torch.cat((before, features[-1:]))
        return chain
