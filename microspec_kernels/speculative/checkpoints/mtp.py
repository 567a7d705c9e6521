# SPDX-License-Identifier: Apache-2.0
"""Find a target's multi-token-prediction modules in its checkpoint, and build the draft of them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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

LAYER = "layer."
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Layout:
    """The names of one module's tensors.

    prefix: a pattern that begins them; its group, if any, is the module's index among the layers.
        Without a group, modules differ in their decoder layers `layers.N.` only.
    names: beginnings of the names behind the prefix, and what `renamed` calls them. Other names are
        the decoder layer's.
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
            "norm.": "norm.", EMBEDDING: EMBEDDING, "layers.0.": LAYER,
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
    "mtp_hidden_states_first": (False,),
    "chain_hidden_post_norm": (),
    "index_topk": (),
}
COUNTS = "num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers"


def mtp_layout(names: Iterable[str], what: str) -> tuple[Layout, list[str]] | None:
    """Return the layout of the modules among tensors `names`, and their prefixes; None: no module.

    Raises ValueError: the modules' indices have a gap.
    """
    names = list(names)
    for layout in LAYOUTS.values():
        (mark,) = (name for name, ours in layout.names.items() if ours == "eh_proj.")
        found = [re.fullmatch(f"({layout.prefix}){mark}weight", name) for name in names]
        if prefixes := {one.group(1): one.groups()[1:] for one in found if one}:
            index = {prefix: int(*number or "0") for prefix, number in prefixes.items()}
            ordered = sorted(index, key=lambda prefix: index[prefix])
            first, last = index[ordered[0]], index[ordered[-1]]
            if last - first + 1 != len(ordered):
                expected = f"{last - first + 1} MTP modules, {ordered[0]} to {ordered[-1]}"
                raise ValueError(f"{what}: expected {expected}, got {', '.join(ordered)}")
            return layout, ordered
    return None


def mtp_draft(
    config: Mapping[str, Any],
    states: Sequence[Mapping[str, Tensor]],
    layout: Layout,
    prefixes: Sequence[str],
    target: CausalModel,
    what: str,
) -> MtpDraft:
    """Return the draft of modules; `states` has the tensors whose names begin with each prefix.

    Raises ValueError: a model type whose layer the loop does not compute, a field that it does not
    honour, tensors that contradict the config or the target, or modules with an LM head or an
    embedding each.
    """
    # A model that also sees has its language model's fields one level below.
    fields = {**config, **config.get("text_config", {})}
    fields = {name: value for name, value in fields.items() if name not in PARTS}
    if not fields.keys() >= set(REQUIRED):
        missing = sorted(set(REQUIRED) - fields.keys())
        raise ValueError(f"{what}: config.json: missing fields {missing}")
    modules = [
        module
        for prefix, state in zip(prefixes, states, strict=True)
        for module in renamed(state, layout, prefix)
    ]
    layers = layer_fields(fields, modules, layout, prefixes, what)
    transformers = require("transformers", "speculative")
    if layers["model_type"] not in transformers.CONFIG_MAPPING:
        expected = f"one that transformers {transformers.__version__} has"
        raise ValueError(f"{what}: model_type: expected {expected}, got {layers['model_type']!r}")
    with reading(f"{what}: config.json", f"a config of {layers['model_type']}"):
        decoder = transformers.AutoConfig.for_model(**layers)
    decoder.windows = (window(fields, layers["layer_types"][0], what),) * len(modules)
    for field, of_target in {
        "hidden_size": target.hidden_size, "vocab_size": target.vocab_size
    }.items():  # fmt: skip
        value = getattr(decoder, field)
        padding = field == "vocab_size" and differ_in_padding(value, of_target)
        if value != of_target and not padding:
            raise ValueError(f"{what}: {field}: expected the target's {of_target}, got {value}")
    shape = [decoder.vocab_size, decoder.hidden_size]
    embedding, head = (rows_of(name, modules, shape, target, what) for name in (EMBEDDING, HEAD))
    if embedding is None and fields.get("mtp_use_dedicated_embeddings"):
        raise ValueError(
            f"{what}: missing tensors ['{prefixes[0]}{EMBEDDING}'], which "
            "mtp_use_dedicated_embeddings announces"
        )
    if embedding is not None and equal(embedding, lambda: target.embedding):
        embedding = None
    lm_head = None
    if head is not None and not equal(head, lambda: target.lm_head.weight):
        lm_head = LMHead(head).of_vocabulary(target.vocab_size)
    order = layout.hidden_first, layout.before_norm
    draft = MtpDraft(decoder, target, embedding, lm_head, *order).eval()
    fill(draft, merged(modules, draft.state_dict().keys()), what)
    return draft


def rows_of(
    name: str,
    modules: Sequence[dict[str, Tensor]],
    shape: Sequence[int],
    target: CausalModel,
    what: str,
) -> Tensor | None:
    """Take the rows of that name out of all modules, and return them; None: no module has them.

    Raises ValueError: another shape, or modules whose rows differ.
    """
    found = [module.pop(name, None) for module in modules]
    if all(rows is None for rows in found):
        return None
    first = found[0]
    for index, rows in enumerate(found):
        if rows is not None and list(rows.shape) != shape:
            raise ValueError(f"{what}: {name}: expected shape {shape}, got {list(rows.shape)}")
        if rows is not first and (first is None or rows is None or not torch.equal(rows, first)):
            raise ValueError(
                f"{what}: {name}: expected the same in all {len(found)} MTP modules, because the "
                f"loop has one for all, got other rows in module {index}"
            )
    assert first is not None
    return first.to(device=target.device, dtype=target.dtype)


def equal(rows: Tensor, lent: Callable[[], Tensor]) -> bool:
    """Return whether a module's own rows are the target's, so that they need not be kept twice."""
    try:
        return torch.equal(rows, lent())
    except TypeError:  # the target's are not exactly rows, for instance with an adapter
        return False


def renamed(state: Mapping[str, Tensor], layout: Layout, prefix: str) -> list[dict[str, Tensor]]:
    """Return the tensors of each module of a prefix, with the names of `layout.names`."""
    count = 1
    if re.compile(layout.prefix).groups == 0:
        # More layers than `layers.0.`, each with the same other tensors.
        found = (re.match(rf"{layout.prefix}layers\.(\d+)\.", name) for name in state)
        count = len({one.group(1) for one in found if one} | {"0"})
    modules: list[dict[str, Tensor]] = []
    for index in range(count):
        ours: dict[str, Tensor] = {}
        for name, tensor in state.items():
            name = name.removeprefix(prefix)
            if count > 1 and (layer := re.match(r"layers\.(\d+)\.", name)):
                if int(layer.group(1)) != index:
                    continue
                name = f"layers.0.{name[layer.end() :]}"
            begin = next((begin for begin in layout.names if name.startswith(begin)), None)
            name = LAYER + name if begin is None else name.replace(begin, layout.names[begin], 1)
            ours[name] = tensor
        modules.append(ours)
    return modules


def layer_fields(
    fields: Mapping[str, Any],
    modules: Sequence[Iterable[str]],
    layout: Layout,
    prefixes: Sequence[str],
    what: str,
) -> dict[str, Any]:
    """Return the fields of a model with these layers only, dense or with experts as they are.

    modules: names of each module's tensors.

    Raises ValueError: a model type or a field that the loop does not honour.
    """
    model_type = fields.get("model_type")
    if model_type not in MODEL_TYPES:
        expected = f"an MTP module of {', '.join(MODEL_TYPES)}"
        raise ValueError(f"{what}: model_type: expected {expected}, got {model_type!r}")
    partly = model_type in PARTLY_ROTATED
    honoured = {"rope_interleave": True, "partial_rotary_factor": partly, "attn_output_gate": True}
    count = len(modules)
    refuse(fields, EXPECTED | dict.fromkeys(COUNTS, (count,)), what)
    refuse(fields, {f: v for f, v in UNSUPPORTED.items() if not honoured.get(f)}, what)
    check_rope(fields, what, partly)
    depth, index = fields.get("num_hidden_layers"), re.fullmatch(layout.prefix, prefixes[0])
    assert index is not None
    begins = int(index.group(1)) if index.groups() else 0
    if layout is LAYOUTS["DeepSeek's"] and depth != begins:
        raise ValueError(
            f"{what}: num_hidden_layers: expected {begins}, because {prefixes[0]}eh_proj is of the "
            f"layer behind the last one, got {depth}"
        )
    if layout is LAYOUTS["MiMo's"] and begins:
        raise ValueError(f"{what}: expected model.mtp_layers.0. first, got {prefixes[0]}")
    experts = {any(".experts." in name for name in names) for names in modules}
    if len(experts) > 1:
        expected = f"experts in all {count} MTP modules or in none"
        raise ValueError(f"{what}: {LAYER}mlp.experts: expected {expected}, got them in some")
    (sparse,) = experts
    kinds = (
        fields.get("mtp_layer_types") or [MTP_LAYER_TYPE.get(model_type, "full_attention")] * count
    )
    if kinds not in ([kind] * count for kind in ("full_attention", "sliding_attention")):
        expected = "one of full_attention and sliding_attention"
        raise ValueError(f"{what}: mtp_layer_types: expected {expected}, got {kinds}")
    return {
        **fields,
        "model_type": SAME_LAYER.get(model_type, model_type),
        "num_hidden_layers": count,
        "first_k_dense_replace": 0 if sparse else count,
        "mlp_only_layers": [] if sparse else list(range(count)),
        "mlp_layer_types": ["sparse" if sparse else "dense"] * count,
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


def merged(modules: Sequence[Mapping[str, Tensor]], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of all modules with `MtpDraft`'s names.

    All experts' matrices are in one tensor where `names` have it so. Checkpoints store them one by
    one, and so does transformers 4.
    """
    whole, names = {}, set(names)
    for index, module in enumerate(modules):
        layer = f"layers.{index}."
        for name, tensor in module.items():
            part, _, rest = name.partition(".")
            whole[layer + rest if part == LAYER[:-1] else f"{part}.{index}.{rest}"] = tensor
        mlp = f"{layer}mlp.experts."
        for joined in {"gate_up_proj", "down_proj"} & {name.removeprefix(mlp) for name in names}:
            parts = ("gate_proj", "up_proj") if joined == "gate_up_proj" else (joined,)
            experts: list[Tensor] = []
            while whole.keys() >= (
                wanted := {f"{mlp}{len(experts)}.{part}.weight" for part in parts}
            ):
                # gate_proj is before up_proj in the alphabet, too.
                experts.append(torch.cat([whole.pop(name) for name in sorted(wanted)]))
            if experts:
                whole[mlp + joined] = torch.stack(experts)
    return whole
