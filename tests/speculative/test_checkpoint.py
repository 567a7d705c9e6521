# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints, and our own format: int8 rows with one scale each."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from microspec_kernels.speculative import (
    CausalModel,
    EagleDraft,
    ModelDraft,
    generate,
    load_draft,
    load_target,
)
from microspec_kernels.speculative.checkpoints.files import dequantised

from .models import SIZE, VOCAB, eagle, eagle_config, example, greedy, prompt, tiny

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


def int8_rows(state: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """Replace the named matrices of `state` by int8 rows and their scales."""
    stored = dict(state)
    for name in names:
        scale = state[name].abs().amax(1) / 127
        stored[name] = (state[name] / scale[:, None]).round().to(torch.int8)
        stored[f"{name}_scale"] = scale
    return stored


def save_draft(
    folder: Path, state: dict[str, Tensor], file: str = "model.safetensors", **config: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    fields = eagle_config(**config).to_dict()
    (folder / "config.json").write_text(json.dumps(fields))
    if file.endswith(".bin"):
        torch.save(state, folder / file)
    else:
        save_file(state, folder / file)
    return folder


def feature(draft: Any) -> Tensor:
    with torch.inference_mode():
        hidden = torch.linspace(-1, 1, 8 * SIZE).view(8, SIZE)
        out: Tensor = draft.extend(prompt(9), hidden[None], torch.tensor([9]), draft.new_cache())
        return out


@pytest.fixture
def target() -> CausalModel:
    return CausalModel(example("llama")[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_an_eagle_draft_comes_back(
    tmp_path: Path, target: CausalModel, bias: bool, file: str, prefix: str
) -> None:
    draft = eagle(target, bias=bias)
    assert (draft.fc.bias is None) is not bias
    state = {prefix + name: weight for name, weight in draft.state_dict().items()}
    state[prefix + "layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    loaded = load_draft(save_draft(tmp_path, state, file, bias=bias), target)
    assert isinstance(loaded, EagleDraft)
    assert torch.equal(feature(loaded), feature(draft))
    assert loaded.lm_head is target.lm_head
    assert loaded.embedding is target.embedding


def test_the_bias_is_there_unless_the_config_denies_it(tmp_path: Path, target: CausalModel) -> None:
    folder = save_draft(tmp_path, eagle(target).state_dict())
    config = json.loads((folder / "config.json").read_text())
    del config["bias"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_draft(folder, target).fc.bias is not None


def test_shards(tmp_path: Path, target: CausalModel) -> None:
    draft = eagle(target)
    names = sorted(draft.state_dict())
    state = draft.state_dict()
    save_draft(tmp_path, {n: state[n] for n in names[:4]}, "model-00001-of-00002.safetensors")
    save_draft(tmp_path, {n: state[n] for n in names[4:]}, "model-00002-of-00002.safetensors")
    assert torch.equal(feature(load_draft(tmp_path, target)), feature(draft))


def test_int8_rows_of_a_draft(tmp_path: Path, target: CausalModel) -> None:
    draft = eagle(target)
    state = draft.state_dict()
    stored = int8_rows(state, {n for n in state if state[n].dim() == 2})
    loaded = load_draft(save_draft(tmp_path, stored), target)
    for name, weight in loaded.state_dict().items():
        if weight.dim() == 2:
            expected = stored[name].float() * stored[f"{name}_scale"][:, None]
            assert torch.equal(weight, expected)
            assert (weight - state[name]).abs().max() <= stored[f"{name}_scale"].max()
        else:
            assert torch.equal(weight, state[name])


def test_other_peoples_int8_is_left_alone() -> None:
    state = {"a": torch.ones(3, 2).to(torch.int8), "b": torch.ones(3, 2), "b_scale": torch.ones(3)}
    for scale in ({}, {"a_scale": torch.ones(3, 1)}, {"a_scale": torch.ones(())}):
        assert dequantised(state | scale) == state | scale


def test_a_draft_with_its_own_embedding_and_head(tmp_path: Path, target: CausalModel) -> None:
    state = eagle(target).state_dict()
    draft_tensors = {EMBEDDING: torch.randn(VOCAB, SIZE), HEAD: torch.randn(VOCAB, SIZE)}
    loaded = load_draft(save_draft(tmp_path, state | draft_tensors), target)
    assert torch.equal(loaded.embedding, draft_tensors[EMBEDDING])
    assert torch.equal(loaded.lm_head.weight, draft_tensors[HEAD])
    with pytest.raises(ValueError, match=r"embed_tokens.weight.*\[199, 32\], got \[7, 32\]"):
        load_draft(save_draft(tmp_path, state | {EMBEDDING: torch.randn(7, SIZE)}), target)


def test_an_ordinary_model_is_a_draft_too(tmp_path: Path, target: CausalModel) -> None:
    example("llama")[0].save_pretrained(tmp_path)
    draft = load_draft(tmp_path, target.model)
    assert isinstance(draft, ModelDraft)
    model, text, truth = example("llama")
    result = generate(model, draft, text, 11, head="dense", depth=4, tree_width=1)
    assert result.tokens.tolist() == truth[:11].tolist()
    assert result.acceptance_lengths == [5, 5]


def test_a_draft_takes_the_targets_dtype(tmp_path: Path) -> None:
    target = CausalModel(tiny().to(torch.bfloat16))
    loaded = load_draft(save_draft(tmp_path, eagle(target).state_dict()), target)
    assert {weight.dtype for weight in loaded.state_dict().values()} == {torch.bfloat16}
    assert loaded.rotary.inv_freq.dtype == torch.float32, "half precision mixes up positions"
    result = generate(target, loaded, prompt(9), 5, capacity=64)
    assert len(result.tokens) == 5


def test_what_is_wrong_with_a_checkpoint_is_said(tmp_path: Path, target: CausalModel) -> None:
    state = eagle(target).state_dict()
    fc = {"fc.weight": state["fc.weight"]}

    def refused(state: dict[str, Tensor], message: str, **config: Any) -> None:
        with pytest.raises(ValueError, match=message):
            load_draft(save_draft(tmp_path, state, **config), target)

    refused(
        fc, r"missing tensors \['fc.bias', 'layers.0.mlp.down_proj.weight'.*unknown tensors \[\]"
    )
    refused(state | {"layers.0.extra": torch.ones(1)}, r"unknown tensors \['layers.0.extra'\]")
    refused(state, r"missing tensors \[\], unknown tensors \['fc.bias'\]", bias=False)
    refused(state | {"fc.bias": torch.ones(3)}, r"fc.bias: expected shape \[32\], got \[3\]")
    refused(state, "vocab_size: expected the target's 199, got 250", vocab_size=250)
    refused(state, "hidden_size: expected the target's 32, got 64", hidden_size=64)


@pytest.mark.parametrize("tied", [True, False])
def test_int8_rows_of_a_target(tmp_path: Path, tied: bool) -> None:
    """With tied embeddings no head is stored; the end-of-text token comes from a separate file."""
    model = tiny("llama", tie_word_embeddings=tied, initializer_range=0.2)
    model.generation_config.eos_token_id = [11, 12]
    model.save_pretrained(tmp_path)
    state = {n: w for n, w in model.state_dict().items() if not (tied and n == HEAD)}
    matrices = {n for n in state if state[n].dim() == 2}
    stored = int8_rows(state, matrices)
    save_file({n: w.contiguous() for n, w in stored.items()}, tmp_path / "model.safetensors")

    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if name in matrices:
                weight.copy_(stored[name].float() * stored[f"{name}_scale"][:, None])
    loaded = load_target(tmp_path)
    assert loaded.eos == {11, 12}
    assert loaded.dtype == torch.float32
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    result = generate(loaded, loaded.model, prompt(9), 12, capacity=64)
    assert result.tokens.tolist() == greedy(model, prompt(9), 12).tolist()

    del stored["model.norm.weight"]
    save_file({n: w.contiguous() for n, w in stored.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing tensors \['model.norm.weight'\]"):
        load_target(tmp_path)


def test_a_plain_target_from_a_folder(tmp_path: Path) -> None:
    model, text, truth = example("qwen3")
    model.save_pretrained(tmp_path)
    loaded = load_target(str(tmp_path))
    assert generate(loaded, loaded.model, text, 9).tokens.tolist() == truth[:9].tolist()
    assert load_target(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere", Path("a/b")])
def test_no_such_folder(path: Any) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_target(path)


def test_a_folder_without_weights(tmp_path: Path, target: CausalModel) -> None:
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        load_draft(tmp_path, target)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no model\*.safetensors"):
        load_draft(tmp_path, target)
