# SPDX-License-Identifier: Apache-2.0
"""Read the config of an EAGLE draft's layers: honour or refuse each field that changes a result."""

from collections.abc import Iterable, Mapping
from typing import Any

from microspec_kernels._files import reading
from microspec_kernels._optional import require
from microspec_kernels.speculative.models.lm_head import differ_in_padding
from microspec_kernels.speculative.models.target import LENGTH_DEPENDENT_ROPE, CausalModel

# Their layers are Llama's, with biases, norms of q and k, or windows where the checkpoint has them.
LLAMA_LIKE = ("llama", "mistral", "mixtral", "qwen2", "qwen3")
# Fields of other models that change a result, with the values that change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "attention_multiplier": (),
    "residual_multiplier": (1,),
    "embedding_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "partial_rotary_factor": (1,),
    "no_rope_layers": ([],),
    "attn_temperature_tuning": (False, 0),
    "clip_qkv": (),
}


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with Llama's fields and those of `Eagle3Draft` on one level.

    `speculators` keeps Llama's fields in `transformer_layer_config`. SpecForge lists the layers
    in `eagle_config` whose outputs the draft reads, so 1 is added (as in SGLang).
    """
    fields = {**config, **config.get("transformer_layer_config", {})}
    outputs = (config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    if outputs and not config.get("eagle_aux_hidden_state_layer_ids"):
        fields["eagle_aux_hidden_state_layer_ids"] = [layer + 1 for layer in outputs]
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
    for field, neutral in UNSUPPORTED.items():
        if (value := fields.get(field)) is not None and value not in neutral:
            raise ValueError(
                f"{what}: {field}: expected none, because these layers have no such step, "
                f"got {value!r}"
            )
    check_rope(fields, what)
    with reading(f"{what}: config.json", "a Llama's config"):
        kept = {field: fields[field] for field in fields.keys() - {"model_type", "layer_types"}}
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


def check_rope(fields: Mapping[str, Any], what: str) -> None:
    """Raise ValueError for a rotary embedding that depends on the text's length.

    A draft rotates by tables that are longer than the text.
    """
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.get(name) or {}
        # There may be one for each kind of layer.
        for one in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
            kind = one.get("rope_type", one.get("type"))
            if kind in LENGTH_DEPENDENT_ROPE:
                raise ValueError(
                    f"{what}: {name}: expected a rope_type that does not depend on the text's "
                    f"length, got {kind!r}"
                )


def set_by_tensors(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, bool]:
    """Return the fields that the tensors decide: `qk_norm`, and biases that the config leaves open.

    Llama's `attention_bias` covers q, k, v and o. If the config sets it, `qkv_bias` is not
    returned.
    """
    tensors = {"bias": "fc", "attention_bias": "o_proj", "mlp_bias": "down_proj"}
    if config.get("attention_bias") is None:
        tensors["qkv_bias"] = "q_proj"
    marks = {f: f"{part}.bias" for f, part in tensors.items() if config.get(f) is None}
    marks["qk_norm"] = "q_norm.weight"
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
        if "sliding_attention" in kinds and not (isinstance(window, int) and window > 0):
            raise ValueError(f"{what}: sliding_window: expected at least 1, got {window!r}")
        return tuple(known[kind] for kind in kinds)
    if window is None or fields.get("use_sliding_window") is False:
        return (None,) * num_layers
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
