"""The files of a checkpoint: its folder, its config and its tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microspec_kernels._files import read_json, read_pt, reading

from .extra import require


def folder_of(path: str | Path) -> Path:
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


def config_in(folder: Path) -> dict[str, Any]:
    """Its config.json; FileNotFoundError where there is none, ValueError for no JSON object."""
    return read_json(folder / "config.json")


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """All tensors of `model*.safetensors`, or else of `pytorch_model*.bin`, on the CPU."""
    state: dict[str, Tensor] = {}
    if files := sorted(folder.glob("model*.safetensors")):
        for file in files:
            with reading(file, "a safetensors file"):
                state |= require("safetensors.torch").load_file(file)
    elif files := sorted(folder.glob("pytorch_model*.bin")):
        for file in files:
            loaded = read_pt(file, "a .bin of named tensors")
            if not isinstance(loaded, dict):
                got = type(loaded).__name__
                raise ValueError(f"{file}: expected a .bin of named tensors, got {got}")
            state |= loaded
    else:
        raise FileNotFoundError(f"{folder}: no model*.safetensors and no pytorch_model*.bin")
    return state


def has_int8_rows(folder: Path) -> bool:
    """Whether its safetensors hold tensors for `dequantised`; their headers alone say so.

    Other int8 formats, with scales of another shape, are for `transformers` to load.
    """
    for file in folder.glob("model*.safetensors"):
        with reading(file, "a safetensors file"):
            tensors = require("safetensors").safe_open(file, framework="pt")
        with tensors:
            names = set(tensors.keys())
            for name in names:
                if tensors.get_slice(name).get_dtype() == "I8" and f"{name}_scale" in names:
                    return len(tensors.get_slice(f"{name}_scale").get_shape()) == 1
    return False


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


def fill(
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
        check_shape(tensor, expected[name].shape, f"{what}: {name}")
    module.load_state_dict(state, strict=False)


def check_shape(tensor: Tensor, expected: torch.Size, what: str) -> None:
    """`tensor` has that shape."""
    if tensor.shape != expected:
        raise ValueError(f"{what}: expected shape {list(expected)}, got {list(tensor.shape)}")
