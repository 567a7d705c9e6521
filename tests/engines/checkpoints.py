# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints of a target that counts in circles, and of drafts that count like it.

Token t = RING · ring + place is followed by the next place of its ring. A token's embedding encodes
its ring and, as points on circles, its place; the LM head has each row at the place before. So the
target's continuation is certain, and the share that a small active vocabulary can draft is known in
advance. The noisy target adds random layers, which make its text unpredictable.

The files have the formats of Llama, EAGLE and EAGLE-3, so an engine loads them like those.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

RING, RINGS, HIDDEN, LAYERS = 32, 16, 64, 8
VOCAB = RING * RINGS
HEADS, HEAD_DIM = 2, 32
NOISE = 0.5
"""Of the noisy target's layers: about every third token is another than the next of its ring."""
FLAT = 0.25
"""Of the flat target's logits: its most likely token has a probability of 0.28, 15 others 0.05."""
D2T_RINGS = (3, 9)
"""The rings whose tokens the draft with `d2t` has rows for."""


def continuation(prompt: Sequence[int], length: int) -> list[int]:
    """Return the tokens with which the target continues a prompt."""
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(following(tokens[-1]))
    return tokens[len(prompt) :]


def following(token: int) -> int:
    return token // RING * RING + (token + 1) % RING


def flat_law() -> Tensor:
    """Return the flat target's law after each token, fp64 [V, V]: its layers add nothing."""
    embedding = _embedding().double()
    normed = embedding / embedding.square().mean(1, keepdim=True).sqrt()
    return (FLAT * normed @ _lm_head().double().T).softmax(-1)


def of_ring(ring: int, length: int, start: int = 0) -> list[int]:
    """Return successive tokens of a ring, from a place on."""
    return [ring * RING + (start + place) % RING for place in range(length)]


def make(folder: Path) -> None:
    """Write all checkpoints, each into its own folder."""
    makers: dict[str, Callable[[], tuple[dict[str, object], dict[str, Tensor]]]] = {
        "target": target,
        "noisy": lambda: target(NOISE),
        "flat": flat,
        "eagle": eagle,
        "eagle3": eagle3,
        "eagle3_d2t": lambda: eagle3(rings=D2T_RINGS),
        "draft_model": draft_model,
        "mtp": mtp,
    }
    for name, maker in makers.items():
        config, weights = maker()
        path = folder / name
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config, indent=1))
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def target(noise: float = 0.0) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Make a target whose layers add nothing, or noise, between the embedding and the LM head."""
    return _llama(LAYERS, noise)


def flat() -> tuple[dict[str, object], dict[str, Tensor]]:
    """Make a target of one layer with a flat law."""
    config, weights = _llama(1, 0.0)
    weights["lm_head.weight"] *= FLAT
    return config, weights


def draft_model() -> tuple[dict[str, object], dict[str, Tensor]]:
    """Make a standalone draft model with one layer."""
    return _llama(1, 0.0)


def eagle() -> tuple[dict[str, object], dict[str, Tensor]]:
    """Make an EAGLE-1 draft: it passes on the newest token's embedding to the target's LM head."""
    weights = _layer("layers.0", noise=0.0)
    del weights["layers.0.input_layernorm.weight"]
    weights["fc.weight"] = torch.cat((torch.eye(HIDDEN), torch.zeros(HIDDEN, HIDDEN)), 1)
    return _config(1), weights


def eagle3(rings: Sequence[int] | None = None) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Make an EAGLE-3 draft, which moves the target's hidden state one place on at each step.

    Its LM head has the rows of `rings`, with `d2t`; None means all rows.
    """
    weights = _layer("midlayer", noise=0.0, attention_width=2 * HIDDEN)
    weights["midlayer.hidden_norm.weight"] = torch.ones(HIDDEN)
    weights["norm.weight"] = torch.ones(HIDDEN)
    weights["fc.weight"] = torch.cat((torch.eye(HIDDEN), torch.zeros(HIDDEN, 2 * HIDDEN)), 1)
    # mlp(x) = down(silu(gate x) · up x) with silu(20) = 20 is a linear map: the move one place on.
    norm = _embedding().norm(dim=1)[0] / math.sqrt(HIDDEN)
    gate = torch.zeros(HIDDEN, HIDDEN)
    gate[:, 0] = 20.0 * norm
    weights["midlayer.mlp.gate_proj.weight"] = gate
    weights["midlayer.mlp.up_proj.weight"] = (_one_place_on() - torch.eye(HIDDEN)) * norm / 20.0
    weights["midlayer.mlp.down_proj.weight"] = torch.eye(HIDDEN)
    head, config = _lm_head(), _config(1)
    if rings is not None:
        tokens = torch.cat([torch.arange(RING) + RING * ring for ring in rings])
        head = head[tokens]
        weights["d2t"] = tokens - torch.arange(len(tokens))
        weights["t2d"] = torch.isin(torch.arange(VOCAB), tokens)
    weights["lm_head.weight"] = head
    return config | {"draft_vocab_size": len(head)}, weights


def mtp() -> tuple[dict[str, object], dict[str, Tensor]]:
    """Make MTP in MiMo's form: the noisy target and the drafting layer in one checkpoint.

    The layer passes on the newest token's embedding to the target's LM head.
    """
    config, weights = _llama(LAYERS, NOISE)
    prefix = "model.mtp_layers.0"
    weights |= _layer(prefix, noise=0.0)
    for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
        weights[f"{prefix}.{name}.weight"] = torch.ones(HIDDEN)
    newest = torch.cat((torch.zeros(HIDDEN, HIDDEN), torch.eye(HIDDEN)), 1)
    weights[f"{prefix}.input_proj.weight"] = newest
    for name in [
        name
        for name in weights
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
    ]:
        weights[name.replace("weight", "bias")] = torch.zeros(HIDDEN)
    family = {"architectures": ["MiMoForCausalLM"], "model_type": "qwen2"}
    return config | family | {"num_nextn_predict_layers": 1}, weights


def _llama(layers: int, noise: float) -> tuple[dict[str, object], dict[str, Tensor]]:
    torch.manual_seed(0)
    weights = {
        "model.embed_tokens.weight": _embedding(),
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": _lm_head(),
    }
    for layer in range(layers):
        weights |= _layer(f"model.layers.{layer}", noise)
    return _config(layers), weights


def _layer(prefix: str, noise: float, attention_width: int = HIDDEN) -> dict[str, Tensor]:
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    weights = {f"{attention}.{name}_proj.weight": _random(attention_width) for name in "qkv"}
    weights[f"{attention}.o_proj.weight"] = noise * _random()
    weights |= {f"{mlp}.{name}_proj.weight": _random() for name in ("gate", "up")}
    weights[f"{mlp}.down_proj.weight"] = noise * _random()
    for name in ("input_layernorm", "post_attention_layernorm"):
        weights[f"{prefix}.{name}.weight"] = torch.ones(HIDDEN)
    return weights


def _random(columns: int = HIDDEN) -> Tensor:
    return torch.randn(HIDDEN, columns) / math.sqrt(columns)


def _embedding() -> Tensor:
    """Return the embedding [V, HIDDEN]: a constant, the ring (one of RINGS), and the place.

    The place is a point on each of RING / 2 - 1 circles.
    """
    ring = torch.arange(VOCAB) // RING
    embedding = torch.zeros(VOCAB, HIDDEN)
    embedding[:, 0] = 1.0
    embedding[torch.arange(VOCAB), 1 + ring] = 2.0
    angle = torch.outer(torch.arange(VOCAB) % RING, _turns()).double()
    circles = torch.stack((angle.cos(), angle.sin()), dim=2).flatten(1)
    embedding[:, _circles()] = circles.float()
    return embedding


def _lm_head() -> Tensor:
    """Return the LM head [V, HIDDEN]: each row is the embedding of the token before its own."""
    before = torch.empty(VOCAB, dtype=torch.int64)
    before[torch.tensor([following(token) for token in range(VOCAB)])] = torch.arange(VOCAB)
    return _embedding()[before].clone()


def _one_place_on() -> Tensor:
    """Return the matrix [HIDDEN, HIDDEN] that maps a token's embedding to the next token's."""
    turn = torch.eye(HIDDEN)
    for circle, angle in enumerate(_turns().tolist()):
        start = _circles().start + 2 * circle
        cos, sin = math.cos(angle), math.sin(angle)
        turn[start : start + 2, start : start + 2] = torch.tensor([[cos, -sin], [sin, cos]])
    return turn


def _turns() -> Tensor:
    return 2 * math.pi / RING * torch.arange(1, RING // 2, dtype=torch.float64)


def _circles() -> slice:
    return slice(1 + RINGS, 1 + RINGS + RING - 2)


def _config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": None,
    }
