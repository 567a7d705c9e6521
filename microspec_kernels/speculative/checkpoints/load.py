# SPDX-License-Identifier: Apache-2.0
"""Load targets and drafts in their published formats, from a local folder or the hub."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microspec_kernels._files import reading
from microspec_kernels._optional import require
from microspec_kernels.speculative.models.draft import ModelDraft
from microspec_kernels.speculative.models.eagle import EagleDraft
from microspec_kernels.speculative.models.eagle3 import Eagle3Draft
from microspec_kernels.speculative.models.lm_head import LMHead
from microspec_kernels.speculative.models.mtp import MtpDraft
from microspec_kernels.speculative.models.target import CausalModel

from .fields import EAGLE_3, refuse
from .files import config_in, dequantised, fill, folder_of, has_int8_rows, names_in, tensors_in
from .formats import (
    EMBEDDING,
    HEAD,
    eagle3_draft,
    is_eagle3,
    own_rows,
    refuse_others,
)
from .layer_config import layer_config
from .mtp import SAME_LAYER, mtp_draft, mtp_layout


def load_target(
    path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> CausalModel:
    """Load a Hugging Face causal LM of one of `supported.MODEL_TYPES`, from a folder or the hub.

    `dtype` None: the checkpoint's. Safetensors may hold int8 rows (see `files.dequantised`).

    Raises FileNotFoundError: no such folder, or one without weights. ValueError: a model type that
    the loop does not support, missing tensors, or int8 rows whose names or shapes differ from the
    model's.
    """
    transformers = require("transformers", "speculative")
    folder = folder_of(path)
    with reading(folder, "a model that transformers loads"):
        same = SAME_LAYER.get(config_in(folder).get("model_type") or "")
        kind = type(transformers.AutoConfig.for_model(same)) if same else transformers.AutoConfig
        config = kind.from_pretrained(folder)
        config.model_type = same or config.model_type
    # Only eager attention applies Gemma 2's soft cap.
    capped = getattr(config, "attn_logit_softcapping", None)
    options: dict[str, Any] = {"attn_implementation": "eager"} if capped else {}
    if not has_int8_rows(folder):
        options["dtype"] = dtype or "auto"
        with reading(folder, "a model that transformers loads"):
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                folder, config=config, output_loading_info=True, **options
            )
        if missing := sorted(found["missing_keys"]):
            more = f" and {len(missing) - 3} more" * (len(missing) > 3)
            raise ValueError(f"load_target: {path}: missing tensors {missing[:3]}{more}")
    else:
        options["dtype"] = dtype or getattr(config, "dtype", None) or torch.float32
        model = transformers.AutoModelForCausalLM.from_config(config, **options)
        tied = {HEAD} if config.tie_word_embeddings else set[str]()
        fill(model, dequantised(tensors_in(folder)), f"load_target: {path}", optional=tied)
        if (folder / "generation_config.json").exists():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return CausalModel(model.to(device))


def load_draft(
    path: str | Path, target: CausalModel | Any
) -> EagleDraft | Eagle3Draft | MtpDraft | ModelDraft:
    """Load a draft for `target`, on its device and in its dtype, from a folder or the hub.

    Supported are EAGLE-1/2 (and HASS, which has the same tensors) and EAGLE-3 as the official code,
    SpecForge or `speculators` write it. In the target's own folder it is the multi-token-prediction
    modules, with the names of DeepSeek, Qwen or MiMo (see `mtp.LAYOUTS`); only their tensors are
    read. A checkpoint of none of these kinds, without `fc.weight`, is
    loaded as a causal LM with the target's vocabulary. The prefix `model.` and rotary buffers,
    which some exporters add, are removed. The draft's own `embed_tokens.weight` and
    `lm_head.weight`, if present, replace the target's.

    An EAGLE-3 draft with its own LM head may propose only the tokens of its rows. If all these rows
    equal the target's, the draft uses the target's rows instead and may propose every token. The
    log says which of the two applies.

    Raises FileNotFoundError: no such folder, or one without weights. ValueError: another kind of
    draft, a config field that the loop does not honour, missing or unknown tensors, shapes that
    contradict the config or the target, or d2t and t2d that contradict each other. Fields of an
    EAGLE draft that the loop does not know are logged.
    """
    target = target if isinstance(target, CausalModel) else CausalModel(target)
    folder, what = folder_of(path), f"load_draft: {path}"
    config = config_in(folder)
    try:
        module = mtp_layout(names_in(folder), what)
    except FileNotFoundError:
        refuse_others(config, (), what)
        raise
    if module:
        layout, prefixes = module
        states = [dequantised(tensors_in(folder, prefix)) for prefix in prefixes]
        return mtp_draft(config, states, layout, prefixes, target, what)
    refuse_others(config, (), what)
    state = {
        name.removeprefix("model."): tensor
        for name, tensor in dequantised(tensors_in(folder)).items()
        if not name.endswith("rotary_emb.inv_freq")
    }
    refuse_others(config, state, what)
    if is_eagle3(config, state):
        return eagle3_draft(config, state, target, what)
    if "fc.weight" not in state:
        return ModelDraft(load_target(folder, dtype=target.dtype, device=target.device))

    refuse(config, {field: (False,) for field in EAGLE_3}, what)
    refuse(config, {"draft_vocab_size": (config.get("vocab_size"),)}, what)
    llama = layer_config(config, state, target, what)
    draft_tensors = {
        name: own_rows(state.pop(name), llama, target, f"{what}: {name}")
        for name in (EMBEDDING, HEAD)
        if name in state
    }
    lm_head = _beside_the_targets(draft_tensors[HEAD], target) if HEAD in draft_tensors else None
    draft = EagleDraft(llama, target, draft_tensors.get(EMBEDDING), lm_head).eval()
    fill(draft, state, what)
    return draft


def _beside_the_targets(weight: Tensor, target: CausalModel) -> LMHead:
    """Return the LM head over a draft's own rows, with the target's bias, scale and soft cap."""
    lent = target.lm_head
    rows = min(len(weight), lent.vocab_size)
    bias = None if lent.bias is None else lent.bias[:rows]
    return replace(lent, weight=weight[:rows], bias=bias).of_vocabulary(lent.vocab_size)
