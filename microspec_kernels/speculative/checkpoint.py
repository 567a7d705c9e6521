"""Targets and drafts from a local folder or the hub, as their makers publish them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .draft import EagleDraft, ModelDraft
from .extra import require
from .model import CausalModel


def load_target(
    path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> CausalModel:
    """A Hugging Face causal LM (Llama, Mistral, Qwen2, Qwen3) from a folder or the hub.

    `dtype` None: the checkpoint's. Safetensors may hold int8 rows (see `dequantised`).

    Raises FileNotFoundError: no such folder, or none with weights. ValueError: a kind of model
    that this loop does not know, or int8 rows whose names or shapes are not the model's.
    """
    transformers = require("transformers")
    folder = _folder(path)
    if not _has_int8_rows(folder):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto")
    else:
        config = transformers.AutoConfig.from_pretrained(folder)
        dtype = dtype or getattr(config, "dtype", None) or torch.float32
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set[str]()
        _fill(model, dequantised(_tensors(folder)), f"load_target: {path}", optional=tied)
        if (folder / "generation_config.json").exists():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return CausalModel(model.to(device))


def load_draft(path: str | Path, target: CausalModel | Any) -> EagleDraft | ModelDraft:
    """A draft for `target`, on its device and in its dtype, from a folder or the hub.

    A checkpoint with `fc.weight` is EAGLE-1/2; any other is taken for an ordinary causal LM with
    the target's vocabulary. The prefix `model.` and rotary buffers are what some exporters add;
    an `embed_tokens.weight` or `lm_head.weight` of the draft's own is used in place of the
    target's.

    Raises FileNotFoundError: no such folder, or none with weights. ValueError: an EAGLE-3
    checkpoint, missing or unknown tensors, shapes that the config or the target contradicts.
    """
    target = target if isinstance(target, CausalModel) else CausalModel(target)
    folder = _folder(path)
    state = {
        name.removeprefix("model."): tensor
        for name, tensor in dequantised(_tensors(folder)).items()
        if not name.endswith("rotary_emb.inv_freq")
    }
    if "d2t" in state or any(name.startswith("midlayer.") for name in state):
        raise ValueError(f"load_draft: {path}: expected an EAGLE-1 or EAGLE-2 draft, got EAGLE-3")
    if "fc.weight" not in state:
        return ModelDraft(load_target(folder, dtype=target.dtype, device=target.device))

    config = json.loads((folder / "config.json").read_text())
    config.pop("model_type", None)  # a Qwen2 draft's layer is this one, too
    draft = EagleDraft(require("transformers").LlamaConfig.from_dict(config), target).eval()
    for name, attribute in (
        ("embed_tokens.weight", "embedding"),
        ("lm_head.weight", "head_weight"),
    ):
        if name in state:
            lent: Tensor = getattr(target, attribute)
            own = state.pop(name)
            if own.shape != lent.shape:
                raise ValueError(
                    f"load_draft: {path}: {name}: expected the target's shape "
                    f"{list(lent.shape)}, got {list(own.shape)}"
                )
            setattr(draft, attribute, own.to(lent))
    _fill(draft, state, f"load_draft: {path}")
    return draft


def dequantised(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every int8 tensor `X` [rows, ...] with a sibling `X_scale` fp32 [rows] as fp32 X * scale."""
    none = torch.empty(0, 0)
    scaled = {
        name
        for name, tensor in state.items()
        if tensor.dtype == torch.int8 and state.get(f"{name}_scale", none).dim() == 1
    }
    plain = {
        name: tensor
        for name, tensor in state.items()
        if name not in scaled and name.removesuffix("_scale") not in scaled
    }
    return plain | {name: state[name].float() * state[f"{name}_scale"][:, None] for name in scaled}


def _folder(path: str | Path) -> Path:
    """`path` where it is a folder, else the hub's repository of that name, fetched."""
    if Path(path).is_dir():
        return Path(path)
    if not isinstance(path, str) or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no folder {path}")
    fetch = require("huggingface_hub").snapshot_download
    folder = Path(fetch(path, allow_patterns=["*.json", "model*.safetensors"]))
    if not any(folder.glob("model*.safetensors")):
        folder = Path(fetch(path, allow_patterns=["*.json", "pytorch_model*.bin"]))
    return folder


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of `model*.safetensors`, or else of `pytorch_model*.bin`, on the CPU."""
    state: dict[str, Tensor] = {}
    if files := sorted(folder.glob("model*.safetensors")):
        for file in files:
            state |= require("safetensors.torch").load_file(file)
    elif files := sorted(folder.glob("pytorch_model*.bin")):
        for file in files:
            state |= torch.load(file, map_location="cpu", weights_only=True)
    else:
        raise FileNotFoundError(f"{folder}: no model*.safetensors and no pytorch_model*.bin")
    return state


def _has_int8_rows(folder: Path) -> bool:
    """Whether its safetensors hold tensors for `dequantised`; their headers alone say so.

    Other int8 formats, with scales of another shape, are for `transformers` to load.
    """
    for file in folder.glob("model*.safetensors"):
        with require("safetensors").safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            for name in names:
                if tensors.get_slice(name).get_dtype() == "I8" and f"{name}_scale" in names:
                    return len(tensors.get_slice(f"{name}_scale").get_shape()) == 1
    return False


def _fill(
    module: nn.Module, state: Mapping[str, Tensor], what: str, optional: set[str] | None = None
) -> None:
    """Copy `state` into `module`: every name and shape, no more and no less.

    The names in `optional` may be missing.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - state.keys() - (optional or set()))
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(f"{what}: missing tensors {missing}, unknown tensors {unknown}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{what}: {name}: expected shape {list(expected[name].shape)}, "
                f"got {list(tensor.shape)}"
            )
    module.load_state_dict(state, strict=False)
