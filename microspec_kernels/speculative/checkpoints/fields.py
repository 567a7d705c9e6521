# SPDX-License-Identifier: Apache-2.0
"""The fields of a draft's config that this loop does not compute: refuse or log each by name."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from microspec_kernels.speculative.models.target import LENGTH_DEPENDENT_ROPE

logger = logging.getLogger(__name__)

Values = tuple[Any, ...]
# Fields of other models that change a result, with the values beside None that change nothing.
UNSUPPORTED: dict[str, Values] = {
    "attention_multiplier": (),
    "residual_multiplier": (1,),
    "embedding_multiplier": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
    "dim_model_base": (),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "partial_rotary_factor": (1,),
    "rotary_pct": (1,),
    "rotary_dim": (),
    "rope_interleave": (False,),
    "rope_interleaved": (False,),
    "rope_local_base_freq": (),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    "attn_temperature_tuning": (False, 0),
    "attn_output_gate": (False,),
    "attention_chunk_size": (),
    "is_causal": (True,),
    "alibi": (False,),
    "use_parallel_residual": (False,),
    "parallel_attn": (False,),
    "clip_qkv": (),
    "swiglu_limit": (),
    "quantization_config": (),
}
# The same for the fields in `eagle_config`, SpecForge's and ModelOpt's.
EAGLE_CONFIG: dict[str, Values] = {
    "use_aux_hidden_state": (True,),
    "use_input_layernorm_in_first_layer": (True,),
    "use_last_layernorm": (True,),
    "use_mtp_layernorm": (False,),
    "parallel_draft_step": (1,),
}
# Fields of EAGLE-3 that EAGLE-1 does not have.
EAGLE_3 = (
    "eagle_aux_hidden_state_layer_ids", "norm_before_residual", "norm_before_fc", "fc_norm",
    "norm_output",
)  # fmt: skip
# Fields that are read elsewhere here, or that describe a file, a training or a use.
READ = (
    "architectures", "attention_bias", "bias", "draft_vocab_size", "eagle_config", "fc_bias",
    "head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_types",
    "max_position_embeddings", "max_window_layers", "mlp_bias", "model_type",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "qk_norm", "qkv_bias",
    "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta", "sliding_window",
    "speculators_model_type", "target_hidden_size", "transformer_layer_config", "use_qk_norm",
    "use_sliding_window", "vocab_size",
)  # fmt: skip
WITHOUT_EFFECT = (
    "_name_or_path", "attention_dropout", "auto_map", "bos_token_id", "dtype",
    "embed_requires_grad", "eos_token_id", "has_no_defaults_at_init", "initializer_range",
    "num_experts_per_tok", "num_local_experts", "output_router_logits", "pad_token_id",
    "pretraining_tp", "router_aux_loss_coef", "router_jitter_noise", "speculators_config",
    "speculators_version", "tie_word_embeddings", "torch_dtype", "transformers_version",
    "use_cache",
)  # fmt: skip


def refuse(fields: Mapping[str, Any], expected: Mapping[str, Values], what: str) -> None:
    """Raise ValueError for a field of `expected` with a value beside None that is not there."""
    for field, values in expected.items():
        value = fields.get(field)
        # 1 == True, but a flag is no factor.
        same = any(value == one and isinstance(value, bool) == isinstance(one, bool)
                   for one in values)  # fmt: skip
        if value is not None and not same:
            wanted = " or ".join(map(str, values)) or "none"
            raise ValueError(f"{what}: {field}: expected {wanted}, got {value!r}")


def check_eagle(fields: Mapping[str, Any], names: Iterable[str], what: str) -> None:
    """Check an EAGLE draft's fields, `layer_config.flattened`, against its tensors `names`.

    Raises ValueError for a field that this loop does not honour. Logs one that it does not know.
    """
    own = fields.get("eagle_config") or {}
    refuse(fields, UNSUPPORTED, what)
    refuse(own, EAGLE_CONFIG, f"{what}: eagle_config")
    check_rope(fields, what)
    names = list(names)
    for field, mark in {
        "qk_norm": "q_norm.weight", "use_qk_norm": "q_norm.weight", "fc_bias": "fc.bias"
    }.items():  # fmt: skip
        there = any(name.endswith(mark) for name in names)
        if fields.get(field) not in (None, there):
            raise ValueError(
                f"{what}: {field}: expected {there}, as {mark} is {'' if there else 'not '}among "
                f"the tensors, got {fields[field]}"
            )
    known = {*UNSUPPORTED, *EAGLE_3, *READ, *WITHOUT_EFFECT}
    known_own = {*EAGLE_CONFIG, "eagle_aux_hidden_state_layer_ids"}
    for name, value in [
        *((name, value) for name, value in fields.items() if name not in known),
        *((f"eagle_config.{name}", value) for name, value in own.items() if name not in known_own),
    ]:
        if value is not None:
            logger.warning("%s: config field %s=%r is not known here, so not applied", what, name,
                           value)  # fmt: skip


def check_rope(fields: Mapping[str, Any], what: str, partly: bool = False) -> None:
    """Check the fields of the rotary embedding; `partly`: it may rotate a part of each head.

    Raises ValueError: a rotary embedding that depends on the text's length, because a draft rotates
    by tables that are longer than the text; or two fields that contradict each other.
    """
    new, old = fields.get("rope_parameters") or {}, fields.get("rope_scaling") or {}
    for name, rope in (("rope_parameters", new), ("rope_scaling", old)):
        # There may be one for each kind of layer.
        for one in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
            kind = one.get("rope_type", one.get("type"))
            if kind in LENGTH_DEPENDENT_ROPE:
                raise ValueError(
                    f"{what}: {name}: expected a rope_type that does not depend on the text's "
                    f"length, got {kind!r}"
                )
            if not partly:
                refuse(one, {"partial_rotary_factor": (1,)}, f"{what}: {name}")
    theta, other = fields.get("rope_theta"), new.get("rope_theta")
    if theta is not None and other is not None and theta != other:
        raise ValueError(f"{what}: rope_theta: expected rope_parameters' {other}, got {theta}")
    if old and new and any(new.get(key, value) != value for key, value in old.items()):
        raise ValueError(f"{what}: rope_scaling: expected rope_parameters' {new}, got {old}")


def legacy_rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with `rope_parameters` as rope_theta and rope_scaling.

    Every version of transformers reads these two; before 5 it ignores `rope_parameters`.
    """
    rest = {name: value for name, value in fields.items() if name != "rope_parameters"}
    rope = dict(fields.get("rope_parameters") or {})
    if (theta := rope.pop("rope_theta", None)) is not None:
        rest["rope_theta"] = theta
    if rope.get("rope_type", "default") != "default":
        rest["rope_scaling"] = rope
    return rest
