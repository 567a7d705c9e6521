# SPDX-License-Identifier: Apache-2.0
"""Find a target's multi-token-prediction module in its checkpoint, and build the draft of it."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microspec_kernels._files import reading
from microspec_kernels._optional import require
from microspec_kernels.speculative.models.lm_head import LMHead, differ_in_padding
from microspec_kernels.speculative.models.mtp import MtpDraft
from microspec_kernels.speculative.models.target import CausalModel

from .fields import UNSUPPORTED, check_rope, refuse
from .files import fill
from .layer_config import check_window

LAYER = "layers.0."
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Layout:
    """The names of one module's tensors.

    prefix: a pattern that begins them; its group, if any, is the module's index among the layers.
    names: beginnings of the names behind the prefix, and what `MtpDraft` calls them. Other names
        are the decoder layer's.
    hidden_first, before_norm: see `MtpDraft`.
    """

    prefix: str
    names: Mapping[str, str]
    hidden_first: bool = False
    before_norm: bool = False


LAYOUTS = {
    # DeepSeek-V3, GLM-4.5: the layer behind the model's last one. The embedding and the head are
    # stored once more.
    "DeepSeek's": Layout(
        r"model\.layers\.(\d+)\.",
        {
            "enorm.": "enorm.", "hnorm.": "hnorm.", "eh_proj.": "eh_proj.",
            "shared_head.norm.": "norm.", "shared_head.head.weight": HEAD, EMBEDDING: EMBEDDING,
        },
    ),
    # Qwen3-Next, Qwen3.5, Mellum.
    "Qwen's": Layout(
        r"mtp\.",
        {
            "pre_fc_norm_embedding.": "enorm.", "pre_fc_norm_hidden.": "hnorm.", "fc.": "eh_proj.",
            "norm.": "norm.", EMBEDDING: EMBEDDING, LAYER: LAYER,
        },
    ),
    "MiMo's": Layout(
        r"model\.mtp_layers\.(\d+)\.",
        {
            "token_layernorm.": "enorm.", "hidden_layernorm.": "hnorm.", "input_proj.": "eh_proj.",
            "final_layernorm.": "norm.",
        },
        hidden_first=True,
        before_norm=True,
    ),
}  # fmt: skip
# The model types whose layer transformers computes and the loop's cache can hold.
MODEL_TYPES = (
    "deepseek_v3", "glm4_moe", "glm4_moe_lite", "mellum", "mimo", "qwen3_next", "qwen3_5_text",
    "qwen3_5_moe_text",
)  # fmt: skip
# What transformers calls a model type that it does not have: beside its module MiMo is Qwen2.
SAME_LAYER = {"mimo": "qwen2"}
MTP_LAYER_TYPE = {"mellum": "sliding_attention"}  # full_attention elsewhere
PARTLY_ROTATED = ("glm4_moe", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
PARTS = ("text_config", "vision_config", "auto_map")
REQUIRED = ("model_type", "hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads")
# Fields that change a result, with the values beside None that this loop computes.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "num_nextn_predict_layers": (1,),
    "num_mtp_layers": (1,),
    "mtp_num_hidden_layers": (1,),
    "mtp_hidden_states_first": (False,),
    "chain_hidden_post_norm": (),
    "index_topk": (),
}


def mtp_layout(names: Iterable[str], what: str) -> tuple[Layout, str] | None:
    """Return the layout of the module among tensors `names`, and the prefix; None: there is none.

    Raises ValueError: there are several modules.
    """
    names = list(names)
    for layout in LAYOUTS.values():
        (mark,) = (name for name, ours in layout.names.items() if ours == "eh_proj.")
        found = [re.fullmatch(f"({layout.prefix}){mark}weight", name) for name in names]
        prefixes = sorted({one.group(1) for one in found if one})
        if len(prefixes) > 1:
            raise ValueError(f"{what}: expected one MTP module, got {', '.join(prefixes)}")
        if prefixes:
            return layout, prefixes[0]
    return None


def mtp_draft(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    layout: Layout,
    prefix: str,
    target: CausalModel,
    what: str,
) -> MtpDraft:
    """Return the draft of the module whose tensors `state` have names that begin with `prefix`.

    Raises ValueError: a model type whose layer the loop does not compute, a field that it does not
    honour, or tensors that contradict the config or the target.
    """
    # A model that also sees has its language model's fields one level below.
    fields = {**config, **config.get("text_config", {})}
    fields = {name: value for name, value in fields.items() if name not in PARTS}
    if not fields.keys() >= set(REQUIRED):
        missing = sorted(set(REQUIRED) - fields.keys())
        raise ValueError(f"{what}: config.json: missing fields {missing}")
    state = renamed(state, layout, prefix)
    layer = layer_fields(fields, state, layout, prefix, what)
    transformers = require("transformers", "speculative")
    if layer["model_type"] not in transformers.CONFIG_MAPPING:
        expected = f"one that transformers {transformers.__version__} has"
        raise ValueError(f"{what}: model_type: expected {expected}, got {layer['model_type']!r}")
    with reading(f"{what}: config.json", f"a config of {layer['model_type']}"):
        one_layer = transformers.AutoConfig.for_model(**layer)
    one_layer.windows = (window(fields, layer["layer_types"][0], what),)
    for field, of_target in {
        "hidden_size": target.hidden_size, "vocab_size": target.vocab_size
    }.items():  # fmt: skip
        value = getattr(one_layer, field)
        padding = field == "vocab_size" and differ_in_padding(value, of_target)
        if value != of_target and not padding:
            raise ValueError(f"{what}: {field}: expected the target's {of_target}, got {value}")
    if fields.get("mtp_use_dedicated_embeddings") and EMBEDDING not in state:
        raise ValueError(
            f"{what}: missing tensors ['{prefix}{EMBEDDING}'], which mtp_use_dedicated_embeddings "
            "announces"
        )
    shape = [one_layer.vocab_size, one_layer.hidden_size]
    lent = {name: rows for name in (EMBEDDING, HEAD) if (rows := state.pop(name, None)) is not None}
    for name, rows in lent.items():
        if list(rows.shape) != shape:
            raise ValueError(f"{what}: {name}: expected shape {shape}, got {list(rows.shape)}")
        lent[name] = rows.to(device=target.device, dtype=target.dtype)
    embedding, head = lent.get(EMBEDDING), lent.get(HEAD)
    if embedding is not None and equal(embedding, lambda: target.embedding):
        embedding = None
    lm_head = None
    if head is not None and not equal(head, lambda: target.lm_head.weight):
        lm_head = LMHead(head).of_vocabulary(target.vocab_size)
    order = layout.hidden_first, layout.before_norm
    draft = MtpDraft(one_layer, target, embedding, lm_head, *order).eval()
    fill(draft, merged(state, draft.state_dict().keys()), what)
    return draft


def equal(rows: Tensor, lent: Callable[[], Tensor]) -> bool:
    """Return whether a module's own rows are the target's, so that they need not be kept twice."""
    try:
        return torch.equal(rows, lent())
    except TypeError:  # the target's are not exactly rows, for instance with an adapter
        return False


def renamed(state: Mapping[str, Tensor], layout: Layout, prefix: str) -> dict[str, Tensor]:
    """Return the tensors with `MtpDraft`'s names."""
    ours = {}
    for name, tensor in state.items():
        name = name.removeprefix(prefix)
        begin = next((begin for begin in layout.names if name.startswith(begin)), None)
        name = LAYER + name if begin is None else name.replace(begin, layout.names[begin], 1)
        ours[name] = tensor
    return ours


def layer_fields(
    fields: Mapping[str, Any],
    names: Iterable[str],
    layout: Layout,
    prefix: str,
    what: str,
) -> dict[str, Any]:
    """Return the fields of a model with this one layer, dense or with experts as its tensors are.

    Raises ValueError: a model type or a field that the loop does not honour.
    """
    model_type = fields.get("model_type")
    if model_type not in MODEL_TYPES:
        expected = f"an MTP module of {', '.join(MODEL_TYPES)}"
        raise ValueError(f"{what}: model_type: expected {expected}, got {model_type!r}")
    partly = model_type in PARTLY_ROTATED
    honoured = {"rope_interleave": True, "partial_rotary_factor": partly, "attn_output_gate": True}
    refuse(fields, EXPECTED, what)
    refuse(fields, {f: v for f, v in UNSUPPORTED.items() if not honoured.get(f)}, what)
    check_rope(fields, what, partly)
    depth, index = fields.get("num_hidden_layers"), re.fullmatch(layout.prefix, prefix)
    assert index is not None
    if layout is LAYOUTS["DeepSeek's"] and depth != int(index.group(1)):
        raise ValueError(
            f"{what}: num_hidden_layers: expected {index.group(1)}, because {prefix}eh_proj is of "
            f"the layer behind the last one, got {depth}"
        )
    experts = any(".mlp.experts." in name for name in names)
    kinds = fields.get("mtp_layer_types") or [MTP_LAYER_TYPE.get(model_type, "full_attention")]
    if kinds not in (["full_attention"], ["sliding_attention"]):
        expected = "one of full_attention and sliding_attention"
        raise ValueError(f"{what}: mtp_layer_types: expected {expected}, got {kinds}")
    return {
        **fields,
        "model_type": SAME_LAYER.get(model_type, model_type),
        "num_hidden_layers": 1,
        "first_k_dense_replace": int(not experts),
        "mlp_only_layers": [] if experts else [0],
        "mlp_layer_types": ["sparse" if experts else "dense"],
        "layer_types": kinds,
    }


def window(fields: Mapping[str, Any], kind: str, what: str) -> int | None:
    """Return the sliding window of a layer of that kind; None: it sees the whole text.

    Raises ValueError: a window in the config that does not go with the kind.
    """
    window = fields.get("sliding_window")
    if kind == "sliding_attention":
        check_window(window, what)
        return window
    slides = window is not None and fields.get("use_sliding_window") is not False
    if slides and "sliding_attention" not in (fields.get("layer_types") or ()):
        raise ValueError(
            f"{what}: sliding_window: expected mtp_layer_types beside it, which say that the "
            f"module has the window {window}, got none"
        )
    return None


def merged(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors with all experts' matrices in one tensor, where `names` have it so.

    Checkpoints store them one by one, and so does transformers 4.
    """
    state, mlp = dict(state), f"{LAYER}mlp.experts."
    for whole in {"gate_up_proj", "down_proj"} & {name.removeprefix(mlp) for name in names}:
        parts = ("gate_proj", "up_proj") if whole == "gate_up_proj" else (whole,)
        experts: list[Tensor] = []
        while state.keys() >= (wanted := {f"{mlp}{len(experts)}.{part}.weight" for part in parts}):
            # gate_proj is before up_proj in the alphabet, too.
            experts.append(torch.cat([state.pop(name) for name in sorted(wanted)]))
        if experts:
            state[mlp + whole] = torch.stack(experts)
    return state
