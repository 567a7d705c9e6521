"""Targets and drafts from a local folder or the hub, as their makers publish them."""

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
from microspec_kernels.speculative.models.target import CausalModel

from .files import config_in, dequantised, fill, folder_of, has_int8_rows, tensors_in
from .formats import (
    EMBEDDING,
    HEAD,
    eagle3_draft,
    is_eagle3,
    llama_config,
    own_rows,
    refuse_others,
)


def load_target(
    path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> CausalModel:
    """A Hugging Face causal LM of one of `supported.MODEL_TYPES`, from a folder or the hub.

    `dtype` None: the checkpoint's. Safetensors may hold int8 rows (see `files.dequantised`).

    Raises FileNotFoundError: no such folder, or none with weights. ValueError: a kind of model
    that this loop does not know, or int8 rows whose names or shapes are not the model's.
    """
    transformers = require("transformers", "speculative")
    folder = folder_of(path)
    with reading(folder, "a model that transformers loads"):
        config = transformers.AutoConfig.from_pretrained(folder)
    # Other attention leaves out Gemma 2's soft cap.
    capped = getattr(config, "attn_logit_softcapping", None)
    options: dict[str, Any] = {"attn_implementation": "eager"} if capped else {}
    if not has_int8_rows(folder):
        options["dtype"] = dtype or "auto"
        with reading(folder, "a model that transformers loads"):
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, **options
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
) -> EagleDraft | Eagle3Draft | ModelDraft:
    """A draft for `target`, on its device and in its dtype, from a folder or the hub.

    EAGLE-1/2 (and HASS, which has their tensors) or EAGLE-3, the latter as the official code,
    SpecForge or `speculators` write it; anything without `fc.weight` is taken for an ordinary
    causal LM with the target's vocabulary. The prefix `model.` and rotary buffers are what some
    exporters add. An `embed_tokens.weight` or `lm_head.weight` of the draft's own is used in place
    of the target's.

    An EAGLE-3 draft whose LM head has rows of its own may propose their tokens alone; where all of
    them equal the target's, it takes the target's rows instead and may propose every token. Which
    it is, is logged.

    Raises FileNotFoundError: no such folder, or none with weights. ValueError: another kind of
    draft, missing or unknown tensors, shapes that the config or the target contradicts, d2t and
    t2d that contradict one another.
    """
    target = target if isinstance(target, CausalModel) else CausalModel(target)
    folder, what = folder_of(path), f"load_draft: {path}"
    config = config_in(folder)
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

    config.pop("model_type", None)  # a Qwen2 draft's layer is this one, too
    llama = llama_config(config, state, target, what)
    own = {
        name: own_rows(state.pop(name), llama, target, f"{what}: {name}")
        for name in (EMBEDDING, HEAD)
        if name in state
    }
    lm_head = _beside_the_targets(own[HEAD], target) if HEAD in own else None
    draft = EagleDraft(llama, target, own.get(EMBEDDING), lm_head).eval()
    fill(draft, state, what)
    return draft


def _beside_the_targets(weight: Tensor, target: CausalModel) -> LMHead:
    """The LM head over a draft's own rows, with bias, scale and soft cap of the target's."""
    lent = target.lm_head
    rows = min(len(weight), lent.vocab_size)
    bias = None if lent.bias is None else lent.bias[:rows]
    return replace(lent, weight=weight[:rows], bias=bias).of_vocabulary(lent.vocab_size)
