# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder form the checkpoint, and the errors if none do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from microspec_kernels.speculative import CausalModel, load_draft, load_target
from microspec_kernels.speculative.checkpoints.files import tensors_in

from .models import eagle, example, tiny
from .test_checkpoint import feature, int8_rows, save_draft

State = dict[str, Tensor]
SUFFIXES = {"model": ".safetensors", "pytorch_model": ".bin"}


def shard(stem: str, place: int, count: int) -> str:
    return f"{stem}-{place:05d}-of-{count:05d}{SUFFIXES[stem]}"


def save(folder: Path, files: dict[str, State]) -> None:
    for name, state in files.items():
        if name.endswith(".bin"):
            torch.save(state, folder / name)
        else:
            save_file(state, folder / name)


def index(folder: Path, files: dict[str, State], stem: str = "model") -> None:
    weight_map = {tensor: name for name, state in files.items() for tensor in state}
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / f"{stem}{SUFFIXES[stem]}.index.json").write_text(text)


def values(**numbers: float) -> State:
    return {name: torch.full((2,), float(number)) for name, number in numbers.items()}


def read(folder: Path) -> dict[str, float]:
    return {name: tensor[0].item() for name, tensor in tensors_in(folder).items()}


@pytest.mark.parametrize("stem", SUFFIXES)
def test_an_index_says_which_files_count(stem: str, tmp_path: Path) -> None:
    """Shards of another cut and a single file are leftovers of an earlier save."""
    cut = {shard(stem, 1, 2): values(a=1, b=2), shard(stem, 2, 2): values(c=3)}
    save(tmp_path, cut)
    index(tmp_path, cut, stem)
    leftovers = {shard(stem, place, 3): values(a=-1, d=-1) for place in (1, 2, 3)}
    save(tmp_path, leftovers | {f"{stem}{SUFFIXES[stem]}": values(c=-1)})
    assert read(tmp_path) == {"a": 1, "b": 2, "c": 3}
    (tmp_path / shard(stem, 2, 2)).unlink()
    with pytest.raises(FileNotFoundError, match=rf"index.json names: {shard(stem, 2, 2)}$"):
        read(tmp_path)


@pytest.mark.parametrize("stem", SUFFIXES)
def test_without_an_index_there_is_one_set(stem: str, tmp_path: Path) -> None:
    cut = {shard(stem, place, 3): values(**{"abc"[place - 1]: place}) for place in (1, 2, 3)}
    save(tmp_path, cut)
    assert read(tmp_path) == {"a": 1, "b": 2, "c": 3}
    other = f"{stem}{SUFFIXES[stem]}"
    save(tmp_path, {other: values(d=4)})
    names = ", ".join(sorted((other, *cut)))
    with pytest.raises(ValueError, match=f"a single file of weights or one series.*got {names}$"):
        read(tmp_path)
    for name in cut:
        (tmp_path / name).unlink()
    assert read(tmp_path) == {"d": 4}


@pytest.mark.parametrize("stem", SUFFIXES)
def test_two_series_are_refused_and_missing_shards_named(stem: str, tmp_path: Path) -> None:
    save(tmp_path, {shard(stem, 1, 2): values(a=1), shard(stem, 2, 2): values(b=2)})
    for place in (1, 2, 3):
        save(tmp_path, {shard(stem, place, 3): values(a=1)})
        with pytest.raises(ValueError, match=f"one series of them, got .*{shard(stem, place, 3)}"):
            read(tmp_path)
    for place in (1, 2):
        (tmp_path / shard(stem, place, 2)).unlink()
    (tmp_path / shard(stem, 2, 3)).unlink()
    with pytest.raises(FileNotFoundError, match=f"belong to the series: {shard(stem, 2, 3)}$"):
        read(tmp_path)
    save(tmp_path, {shard(stem, 2, 3): values(b=1), shard(stem, 4, 3): values(c=1)})
    with pytest.raises(ValueError, match=f"one series of them, got .*{shard(stem, 4, 3)}"):
        read(tmp_path)


def test_a_tensor_stands_in_one_file(tmp_path: Path) -> None:
    first, second = shard("model", 1, 2), shard("model", 2, 2)
    save(tmp_path, {first: values(a=1, b=1), second: values(b=2)})
    with pytest.raises(ValueError, match=f"b: expected in one file, .* {first} and {second}"):
        read(tmp_path)


def test_an_index_and_its_files_agree(tmp_path: Path) -> None:
    first, second = shard("model", 1, 2), shard("model", 2, 2)
    save(tmp_path, {first: values(a=1), second: values(b=2)})
    index(tmp_path, {first: values(a=1, b=2), second: values(c=2)})
    with pytest.raises(ValueError, match=f"b: expected in {first}, as .*, got {second}"):
        read(tmp_path)
    index(tmp_path, {first: values(a=1), second: values(b=2, c=2)})
    with pytest.raises(ValueError, match=f"c: expected in {second}, as .*, got it nowhere"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a JSON object, got an unreadable file"),
        ("[]", "a JSON object, got list"),
        ("{}", "a weight_map from tensors"),
        ('{"weight_map": []}', "a weight_map from tensors"),
        ('{"weight_map": {"a": 3}}', "a weight_map from tensors"),
        ('{"weight_map": {}}', "a weight_map from tensors"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "a weight_map from tensors"),
    ],
)
def test_an_index_that_is_none(text: str, expected: str, tmp_path: Path) -> None:
    save(tmp_path, {"model.safetensors": values(a=1)})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=rf"index\.json: expected {expected}"):
        read(tmp_path)


def test_safetensors_come_before_bin(tmp_path: Path) -> None:
    """A complete set of safetensors hides any .bin."""
    bins = {"pytorch_model.bin": values(a=-1, z=-1), shard("pytorch_model", 1, 2): values(a=-1)}
    save(tmp_path, bins)
    save(tmp_path, {"model.safetensors": values(a=1)})
    assert read(tmp_path) == {"a": 1}


def test_a_draft_and_int8_rows_of_a_target_follow_the_index(tmp_path: Path) -> None:
    target = CausalModel(example("llama")[0])
    draft, other = eagle(target), eagle(target, seed=1)
    folder = save_draft(tmp_path / "draft", other.state_dict(), shard("model", 1, 1))
    names = sorted(draft.state_dict())
    cut = {
        shard("model", place, 2): {name: draft.state_dict()[name] for name in part}
        for place, part in ((1, names[:4]), (2, names[4:]))
    }
    save(folder, cut)
    index(folder, cut)
    assert torch.equal(feature(load_draft(folder, target)), feature(draft))

    model = tiny(seed=3)
    folder = tmp_path / "target"
    model.save_pretrained(folder)
    stored = int8_rows(model.state_dict(), {"lm_head.weight"})
    # The single file of floats is a leftover beside an index of int8 rows.
    cut = {shard("model", 1, 1): {name: t.contiguous() for name, t in stored.items()}}
    save(folder, cut)
    index(folder, cut)
    expected = stored["lm_head.weight"].float() * stored["lm_head.weight_scale"][:, None]
    assert torch.equal(load_target(folder).lm_head.weight, expected)


BIASES: list[tuple[dict[str, Any], list[str]]] = [
    ({"bias": True}, ["fc"]),
    ({"attention_bias": True}, ["layers.0.self_attn." + p + "_proj" for p in "qkvo"]),
    ({"qkv_bias": True}, ["layers.0.self_attn." + p + "_proj" for p in "qkv"]),
    ({"mlp_bias": True}, ["layers.0.mlp." + p + "_proj" for p in ("gate", "up", "down")]),
]


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize(("fields", "parts"), BIASES, ids=lambda x: "-".join(x))
def test_biases_that_the_config_is_silent_about(
    fields: dict[str, Any], parts: list[str], silent: bool, tmp_path: Path
) -> None:
    """If the config says nothing, the tensors decide; otherwise the config does."""
    target = CausalModel(example("llama")[0])
    draft = eagle(target, **{"bias": False, **fields})
    state = draft.state_dict()
    assert {name for name in state if name.endswith(".bias")} == {f"{p}.bias" for p in parts}
    folder = save_draft(tmp_path, state)
    config = json.loads((folder / "config.json").read_text())
    for name in ("bias", "qkv_bias", "attention_bias", "mlp_bias"):
        config.pop(name, None)
        if not silent:
            config[name] = False
    (folder / "config.json").write_text(json.dumps(config))
    if silent:
        assert torch.equal(feature(load_draft(folder, target)), feature(draft))
    else:
        with pytest.raises(ValueError, match=rf"unknown tensors \[.*'{parts[0]}.bias'"):
            load_draft(folder, target)


def test_without_biases_and_a_word_of_them(tmp_path: Path) -> None:
    target = CausalModel(example("llama")[0])
    draft = eagle(target, bias=False)
    folder = save_draft(tmp_path, draft.state_dict())
    config = json.loads((folder / "config.json").read_text())
    del config["bias"]
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_draft(folder, target)
    assert loaded.fc.bias is None
    assert torch.equal(feature(loaded), feature(draft))
