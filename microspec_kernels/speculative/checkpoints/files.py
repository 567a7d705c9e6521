# SPDX-License-Identifier: Apache-2.0
"""Read the files of a checkpoint: its folder, its config and its tensors."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microspec_kernels._files import read_json, read_pt, reading
from microspec_kernels._optional import require


def folder_of(path: str | Path) -> Path:
    """Return `path` if it is a folder; otherwise download the hub repository of that name.

    Raises FileNotFoundError: `path` is neither a folder nor a repository's name.
    """
    if Path(path).is_dir():
        return Path(path)
    if not isinstance(path, str) or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no folder {path}")
    fetch = require("huggingface_hub", "speculative").snapshot_download
    folder = Path(fetch(path, allow_patterns=["*.json", "model*.safetensors"]))
    if not any(folder.glob("model*.safetensors")):
        folder = Path(fetch(path, allow_patterns=["*.json", "pytorch_model*.bin"]))
    return folder


def config_in(folder: Path) -> dict[str, Any]:
    """Read config.json. Raises FileNotFoundError; ValueError if it is not a JSON object."""
    return read_json(folder / "config.json")


def names_in(folder: Path) -> list[str]:
    """Return the names of all tensors of `weight_files`. Of safetensors only headers are read.

    Raises the errors of `weight_files`.
    """
    files, index = weight_files(folder)
    if index:
        return list(index)
    return [name for file in files for name in _names(file)]


def tensors_in(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """Read the tensors of `weight_files` whose names begin with `prefix`, on the CPU.

    Raises the errors of `weight_files`. ValueError: two files have the same tensor, or a file lacks
    a tensor that the index assigns to it.
    """
    files, index = weight_files(folder)
    index = {name: file for name, file in index.items() if name.startswith(prefix)}
    state: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for file in files:
        if prefix and index and file.name not in index.values():
            continue
        tensors = _load(file, prefix)
        if twice := sorted(state.keys() & tensors.keys()):
            raise ValueError(
                f"{folder}: {twice[0]}: expected in one file, got it in {origin[twice[0]]} and "
                f"{file.name}"
            )
        state |= tensors
        origin |= dict.fromkeys(tensors, file.name)
    for name, file_name in index.items():
        if origin.get(name) != file_name:
            raise ValueError(
                f"{folder}: {name}: expected in {file_name}, as the index says, got "
                f"{origin.get(name, 'it nowhere')}"
            )
    return state


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files that hold a checkpoint's tensors, and its index from tensors to file names.

    If there are safetensors (`model*.safetensors`), only they count; otherwise
    `pytorch_model*.bin`. An index (`model.safetensors.index.json`) decides which files count;
    others are ignored. Without an index, the returned index is empty, and the folder must have a
    single file or one complete series `-00001-of-0000N`, and no other weight file.

    Raises FileNotFoundError: no weight file, or files missing that the index or the series' names
    require; the message names them. ValueError: files that are not one set, or an invalid index.
    """
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index_file = folder / f"{stem}{suffix}.index.json"
        if index_file.exists():
            index = _index_in(index_file)
            return _all_there(folder, set(index.values()), f"{index_file.name} names"), index
        if names := {file.name for file in folder.glob(f"{stem}*{suffix}")}:
            return _all_there(folder, _whole_set(folder, names), "belong to the series"), {}
    raise FileNotFoundError(f"{folder}: no model*.safetensors and no pytorch_model*.bin")


def _index_in(file: Path) -> dict[str, str]:
    """Read an index's map from tensor names to names of files in the same folder."""
    index = read_json(file).get("weight_map")
    if isinstance(index, dict) and index:
        names = index.values()
        if all(isinstance(name, str) and Path(name).name == name for name in names):
            return index
    raise ValueError(f"{file}: expected a weight_map from tensors to names of files beside it")


def _whole_set(folder: Path, names: set[str]) -> set[str]:
    """Return the names of the single file or the one complete series that `names` belong to."""
    shards = [re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})(\..*)", name) for name in names]
    series = {shard.group(1, 3, 4) if shard else None for shard in shards}
    if series == {None} and len(names) == 1:
        return names
    whole: set[str] = set()
    for start, count, end in filter(None, series):
        whole |= {f"{start}-{place:05d}-of-{count}{end}" for place in range(1, int(count) + 1)}
    if len(series) > 1 or not names <= whole:
        raise ValueError(
            f"{folder}: expected an index, a single file of weights or one series of them, got "
            f"{', '.join(sorted(names))}"
        )
    return whole


def _all_there(folder: Path, names: set[str], who: str) -> list[Path]:
    """Return the paths of these files. Raises FileNotFoundError if one is missing."""
    if missing := sorted(name for name in names if not (folder / name).exists()):
        raise FileNotFoundError(f"{folder}: missing files that {who}: {', '.join(missing)}")
    return [folder / name for name in sorted(names)]


def _load(file: Path, prefix: str) -> dict[str, Tensor]:
    """Read the tensors of a file whose names begin with `prefix`."""
    if file.suffix == ".safetensors":
        with _opened(file) as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name: tensors.get_tensor(name) for name in names}
    tensors = read_pt(file, "a .bin of named tensors")
    if not isinstance(tensors, dict):
        got = type(tensors).__name__
        raise ValueError(f"{file}: expected a .bin of named tensors, got {got}")
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _names(file: Path) -> list[str]:
    if file.suffix != ".safetensors":
        return list(_load(file, ""))
    with _opened(file) as tensors:
        return list(tensors.keys())


def _opened(file: Path) -> Any:
    """Open safetensors: an object with `keys`, `get_tensor` and `get_slice`."""
    with reading(file, "a safetensors file"):
        return require("safetensors", "speculative").safe_open(file, framework="pt")


def has_int8_rows(folder: Path) -> bool:
    """Return whether the safetensors hold int8 rows for `dequantised`. Only headers are read.

    Other int8 formats, with scales of another shape, are left to `transformers`.
    """
    for file in weight_files(folder)[0]:
        if file.suffix != ".safetensors":
            continue
        with _opened(file) as tensors:
            names = set(tensors.keys())
            for name in names:
                if tensors.get_slice(name).get_dtype() == "I8" and f"{name}_scale" in names:
                    return len(tensors.get_slice(f"{name}_scale").get_shape()) == 1
    return False


def dequantised(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with int8 rows dequantised.

    An int8 tensor `X` [rows, ...] with a scale `X_scale` fp32 [rows] becomes fp32 X * scale; other
    tensors stay.
    """
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
    """Copy `state` into `module`. Names and shapes must match exactly.

    The names in `optional` may be missing. Raises ValueError for a missing or unknown name or
    another shape.
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
    """Raise ValueError unless `tensor` has the expected shape."""
    if tensor.shape != expected:
        raise ValueError(f"{what}: expected shape {list(expected)}, got {list(tensor.shape)}")
