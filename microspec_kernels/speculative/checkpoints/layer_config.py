# SPDX-License-Identifier: Apache-2.0
"""Read the config of an EAGLE draft's layers: honour or refuse each field that changes a result."""

from collections.abc import Iterable, Mapping
from typing import Any

from microspec_kernels._files import reading
from microspec_kernels._optional import require
from microspec_kernels.speculative.models.lm_head import differ_in_padding
from microspec_kernels.speculative.models.target import CausalModel

from .fields import check_eagle, legacy_rope

FEATURE_LAYERS = "eagle_aux_hidden_state_layer_ids"
# Their layers are Llama's, with biases, norms of q and k, or windows where the checkpoint has them.
LLAMA_LIKE = ("llama", "mistral", "mixtral", "qwen2", "qwen3")


def flattened(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return a config with Llama's fields and those of `Eagle3Draft` on one level.

    `speculators` keeps Llama's fields in `transformer_layer_config`. SpecForge lists the layers
    in `eagle_config` whose outputs the draft reads, so 1 is added (as in SGLang).

    Raises ValueError: two lists of layers that contradict each other.
    """
    fields = {**config, **config.get("transformer_layer_config", {})}
    outputs = (config.get("eagle_config") or {}).get(FEATURE_LAYERS)
    if outputs:
        inputs, listed = [layer + 1 for layer in outputs], config.get(FEATURE_LAYERS)
        if listed and listed != inputs:
            raise ValueError(
                f"{what}: {FEATURE_LAYERS}: expected {inputs}, the inputs of the layers behind "
                f"eagle_config's {outputs}, got {listed}"
            )
        fields[FEATURE_LAYERS] = inputs
    return fields


def layer_config(
    fields: Mapping[str, Any], names: Iterable[str], target: CausalModel, what: str
) -> Any:
    """Return the `LlamaConfig` of an EAGLE draft with the tensors `names`.

    It also has `windows`, each layer's sliding window or None, and what `set_by_tensors` adds.

    Raises ValueError: a model type or a field that the layers here do not support, a config that is
    not a Llama's, or a vocabulary that differs from the target's by more than padding rows.
    """
    model_type = fields.get("model_type") or "llama"
    if model_type not in LLAMA_LIKE:
        expected = f"the layers of {', '.join(LLAMA_LIKE)}"
        raise ValueError(f"{what}: model_type: expected {expected}, got {model_type!r}")
    names = list(names)
    check_eagle(fields, names, what)
    with reading(f"{what}: config.json", "a Llama's config"):
        left_out = {"model_type", "layer_types", "qk_norm", "use_qk_norm", "fc_bias"}
        kept = {name: value for name, value in legacy_rope(fields).items() if name not in left_out}
        config = require("transformers", "speculative").LlamaConfig.from_dict(
            {**kept, **set_by_tensors(fields, names)}
        )
    config.windows = windows(fields, model_type, config.num_hidden_layers, what)
    if not differ_in_padding(config.vocab_size, target.vocab_size):
        raise ValueError(
            f"{what}: vocab_size: expected the target's {target.vocab_size}, got "
            f"{config.vocab_size}"
        )
    return config


def set_by_tensors(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, bool]:
    """Return the fields that the tensors decide: `qk_norm`, and biases that the config leaves open.

    Llama's `attention_bias` covers q, k, v and o. If the config sets it, `qkv_bias` is not
    returned.
    """
    tensors = {"bias": "fc", "attention_bias": "o_proj", "mlp_bias": "down_proj"}
    if config.get("attention_bias") is None:
        tensors["qkv_bias"] = "q_proj"
    marks = {f: f"{part}.bias" for f, part in tensors.items() if config.get(f) is None}
    marks |= {"qk_norm": "q_norm.weight", "fc_bias": "fc.bias"}
    names = list(names)
    return {field: any(name.endswith(mark) for name in names) for field, mark in marks.items()}


def windows(
    fields: Mapping[str, Any], model_type: str, num_layers: int, what: str
) -> tuple[int | None, ...]:
    """Return the sliding window of each layer; None: the layer sees the whole text.

    `layer_types` says which layers have the window `sliding_window`. Without it, the rule of the
    model type applies, as in `transformers`.

    Raises ValueError: layer types that contradict the other fields or are unknown, or a window of
    a Llama, whose model type has no such rule.
    """
    window, kinds = fields.get("sliding_window"), fields.get("layer_types")
    if kinds is not None:
        expected = f"{num_layers} of full_attention and sliding_attention"
        known = {"full_attention": None, "sliding_attention": window}
        if len(kinds) != num_layers or not known.keys() >= set(kinds):
            raise ValueError(f"{what}: layer_types: expected {expected}, got {kinds}")
        if "sliding_attention" in kinds:
            check_window(window, what)
        return tuple(known[kind] for kind in kinds)
    if window is None or fields.get("use_sliding_window") is False:
        return (None,) * num_layers
    check_window(window, what)
    if model_type in ("mistral", "mixtral"):
        return (window,) * num_layers
    if model_type.startswith("qwen"):
        first = fields.get("max_window_layers", 28) if fields.get("use_sliding_window") else None
        slides = [first is not None and index >= first for index in range(num_layers)]
        return tuple(window if slide else None for slide in slides)
    raise ValueError(
        f"{what}: sliding_window: expected layer_types beside it, which name the layers that have "
        f"the window {window}, got none"
    )


def check_window(window: Any, what: str) -> None:
    """Raise ValueError unless it is a number of tokens, the token itself included."""
    if not (isinstance(window, int) and window > 0):
        raise ValueError(f"{what}: sliding_window: expected at least 1, got {window!r}")
