# SPDX-License-Identifier: Apache-2.0
"""MTP drafts with the names of every public checkpoint: their computation, and the loop."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from microspec_kernels.speculative import (
    CausalModel,
    MtpDraft,
    Sampling,
    generate,
    load_draft,
    load_target,
)
from microspec_kernels.speculative.checkpoints.mtp import SAME_LAYER

from .models import SIZE, VOCAB, greedy, prompt, tiny
from .mtp import CONFIGS, INNER, NAMES, SIGMOID, Plain, fields_of, tensors, write
from .test_eagle3 import First, close

DEPTH = 4
FILES = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
EXPERT_FIELDS = (
    "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_group", "topk_group",
    "num_nextn_predict_layers",
)  # fmt: skip


def is_known(name: str) -> bool:
    """Return whether this version of transformers has the layer."""
    kind = fields_of(name)["model_type"]
    return SAME_LAYER.get(kind, kind) in transformers.CONFIG_MAPPING


KINDS = [name for name in CONFIGS if is_known(name)]


@cache
def example() -> tuple[Any, Tensor, Tensor]:
    """Return a target whose final norm has weights of its own, a prompt and its continuation."""
    model, text = tiny("llama"), prompt(12)
    with torch.no_grad():
        weight = model.model.norm.weight
        weight += 0.3 * torch.randn(SIZE, generator=torch.Generator().manual_seed(2))
    return model, text, greedy(model, text, 12)


@pytest.fixture
def target() -> CausalModel:
    return CausalModel(example()[0])


@torch.no_grad()
def before_of(name: str, model: Any, text: Tensor) -> Tensor:
    """Return the hidden states [n, D] that a module reads with the text's next tokens."""
    seen: list[Tensor] = []
    norm = model.model.norm
    hook = norm.register_forward_hook(lambda norm, given, out: seen.extend((given[0], out)))
    model.model(text[None])
    hook.remove()
    return seen[0 if name == "mimo" else 1][0]


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_features_and_logits_equal_the_formula(
    name: str, tmp_path: Path, target: CausalModel
) -> None:
    """Read a text in two parts, then siblings and a child of the second, then more text."""
    (model, text, _), state = example(), tensors(name)
    draft, plain = load_draft(write(tmp_path, name, state), target), Plain(name, state, target)
    assert isinstance(draft, MtpDraft)
    hidden, before = target.prefill(text[0], target.new_cache())[0], before_of(name, model, text[0])
    expected = plain.features(text[0, 1:], before[:-1])

    cache = draft.new_cache()
    draft.extend(text[:, :6], hidden[None, :5], torch.tensor([6]), cache)
    feature = draft.extend(text[:, 6:9], hidden[None, 5:8], torch.tensor([3]), cache)
    close(feature, expected[7:8])
    close(draft.lm_head.logits(draft.head_input(feature)), plain.logits(expected[7:8]))

    siblings, itself = torch.tensor([[3, 5]]), torch.eye(2, dtype=torch.bool)[None]
    parents = feature[None].expand(1, 2, -1)
    below = draft.step(siblings, parents, cache.ahead(1), cache.mask(itself), cache)
    mask = torch.cat((torch.tensor([[[True, False, True]]]), cache.mask()), dim=2)
    child = draft.step(torch.tensor([[9]]), below[:, 1:], cache.ahead(2)[:, 1:], mask, cache)
    path = torch.cat((text[0, 1:9], torch.tensor([5])))
    inputs = torch.cat((before[:8].double(), expected[7:8]))
    second = plain.features(path, inputs)[-1:]
    close(below[0, 1:], second)
    path, inputs = torch.cat((path, torch.tensor([9]))), torch.cat((inputs, second))
    close(child[0], plain.features(path, inputs)[-1:])

    cache.drop()
    close(draft.extend(text[:, 9:], hidden[None, 8:11], torch.tensor([3]), cache), expected[-1:])


@pytest.mark.parametrize("name", KINDS)
def test_the_loop_drafts_what_the_formula_does(
    name: str, tmp_path: Path, target: CausalModel
) -> None:
    """Compare chains of one module applied to its own output, below a prompt and a longer text."""
    (model, text, truth), state = example(), tensors(name)
    draft, plain = load_draft(write(tmp_path, name, state), target), Plain(name, state, target)
    whole = torch.cat((text[0], truth))
    before = before_of(name, model, whole)
    spy = First(draft)
    result = generate(target, draft, text, len(truth), head=spy, depth=DEPTH, tree_width=1)
    assert result.tokens.tolist() == truth.tolist()
    for step in (0, 3):
        newest = text.shape[1] + sum(result.acceptance_lengths[:step])
        expected = plain.chain(whole[1 : newest + 1], before[:newest], DEPTH)
        assert spy.first[step * DEPTH :][:DEPTH] == expected


@pytest.mark.parametrize("name", KINDS)
def test_the_output_is_the_targets(name: str, tmp_path: Path) -> None:
    """So it is with every head, in trees and chains; with K = V sparse accepts as dense does."""
    model, text = predictable(), prompt(12)
    target, truth = CausalModel(model), greedy(model, text, 16)
    draft = load_draft(write(tmp_path, name, helpful(name, target)), target)
    for chain in (False, True):
        lengths = []
        for head, capacity in (("dense", 1), ("sparse", VOCAB), ("sparse", 16)):
            result = generate(
                target, draft, text, 16, head=head, capacity=capacity, depth=3, tree_width=4,
                tree_size=12, chain=chain, frequent_tokens=range(VOCAB),
            )  # fmt: skip
            assert result.tokens.tolist() == truth.tolist()
            lengths.append(result.acceptance_lengths)
        assert lengths[0] == lengths[1]
        assert len(lengths[0]) < 15, "a draft that is never right compares nothing"


def predictable() -> Any:
    """Make a target whose next token depends mostly on the newest one."""
    model = tiny("llama", initializer_range=0.3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight *= 0.1
    return model


def helpful(name: str, target: CausalModel, seed: int = 0) -> dict[str, Tensor]:
    """Make a module that is right now and then for `predictable`: it looks at the newest token."""
    state, (prefix, _, enorm, _, project, norm) = tensors(name, seed), NAMES[name]
    for part in state:
        if part.endswith(("o_proj.weight", "down_proj.weight")):
            state[part] *= 0.1
    joined = torch.cat((torch.eye(SIZE), 0.02 * torch.randn(SIZE, SIZE)), dim=1)
    state[f"{prefix}{project}.weight"] = joined.roll(SIZE, 1) if name == "mimo" else joined
    for part in (enorm, norm):
        state[f"{prefix}{part}.weight"] = torch.ones(SIZE) * (not name.startswith("qwen"))
    for part, rows in {
        "embed_tokens": target.embedding, "shared_head.head": target.lm_head.weight
    }.items():  # fmt: skip
        if f"{prefix}{part}.weight" in state:
            state[f"{prefix}{part}.weight"] = rows.clone()
    return state


def test_a_sampled_chain_follows_the_seed(tmp_path: Path, target: CausalModel) -> None:
    draft = load_draft(write(tmp_path, "mimo", tensors("mimo")), target)
    for chain in (False, True):
        first, again = (
            generate(
                target, draft, prompt(9), 12, head="sparse", capacity=64, depth=3, chain=chain,
                sampling=Sampling(temperature=0.8, seed=5),
            ).tokens.tolist()
            for _ in range(2)
        )  # fmt: skip
        assert first == again and len(first) == 12


def test_shared_rows_are_the_targets_own(tmp_path: Path, target: CausalModel) -> None:
    """A module stores the embedding and the head once more; equal rows are not kept twice."""
    draft = load_draft(write(tmp_path, "glm", helpful("glm", target)), target)
    assert draft.lm_head is target.lm_head and draft.embedding is target.embedding
    draft = load_draft(write(tmp_path, "glm", tensors("glm")), target)
    assert torch.equal(
        draft.lm_head.weight, tensors("glm")["model.layers.46.shared_head.head.weight"]
    )
    assert torch.equal(draft.embedding, tensors("glm")["model.layers.46.embed_tokens.weight"])


def test_a_module_with_rows_of_its_own_does_not_need_the_targets(tmp_path: Path) -> None:
    """An adapter in the target's LM head makes it more than its rows."""

    class Adapted(torch.nn.Linear):
        pass

    model, text = predictable(), prompt(12)
    head = model.lm_head
    model.lm_head = Adapted(head.in_features, head.out_features, bias=False)
    model.lm_head.weight = head.weight
    target = CausalModel(model)
    draft = load_draft(write(tmp_path, "glm", tensors("glm")), target)
    result = generate(target, draft, text, 8, depth=2)
    assert result.tokens.tolist() == greedy(model, text, 8).tolist()
    with pytest.raises(TypeError, match="LM head"):
        load_draft(write(tmp_path, "mimo", tensors("mimo")), target)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("glm", {"model_type": "falcon_h1"}, "model_type: expected an MTP module of .*'falcon_h1'"),
    ("glm", {"model_type": None}, "model_type: expected an MTP module of .* got None"),
    ("glm", {"num_hidden_layers": 45}, "num_hidden_layers: expected 46, .* got 45"),
    ("glm", {"num_nextn_predict_layers": 2}, "num_nextn_predict_layers: expected 1, got 2"),
    ("qwen3.5", {"mtp_num_hidden_layers": 2}, "mtp_num_hidden_layers: expected 1, got 2"),
    ("qwen3.5", {"mtp_use_dedicated_embeddings": True}, r"missing .*'mtp.embed_tokens.weight'"),
    ("mimo", {"mtp_hidden_states_first": True}, "mtp_hidden_states_first: expected False, got T"),
    ("glm", {"quantization_config": {"bits": 4}}, "quantization_config: expected none, got"),
    ("glm", {"hidden_size": 64}, "hidden_size: expected the target's 32, got 64"),
    ("glm", {"vocab_size": 250}, "vocab_size: expected the target's 199, got 250"),
    ("glm", {"vocab_size": 200}, r"embed_tokens.weight: expected shape \[200, 32\], got \[199"),
    ("glm", {"use_qk_norm": False}, r"unknown tensors \['layers.0.self_attn.k_norm.weight'"),
    ("glm", {"num_attention_heads": 8}, r"proj.weight: expected shape .*64"),
    ("glm", {"n_routed_experts": 8}, r".*(expected shape \[8.*got \[4|missing .*experts.4)"),
    ("glm", {"sliding_window": 5}, "sliding_window: expected mtp_layer_types .* 5, got none"),
    ("mimo", {"use_sliding_window": True}, "sliding_window: expected mtp_layer_types"),
    ("mellum", {"sliding_window": None}, "sliding_window: expected at least 1, got None"),
    ("mellum", {"mtp_layer_types": ["linear_attention"]}, "mtp_layer_types: expected one of full"),
    ("mimo", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, got 0.5"),
    ("glm", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling: .*'dynamic'"),
    ("glm", {"logit_scale": 0.5}, "logit_scale: expected 1, got 0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=str)
def test_a_field_that_is_not_honoured_is_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path, target: CausalModel
) -> None:
    if not is_known(name):
        pytest.skip("a layer of a later transformers")
    with pytest.raises(ValueError, match=f"load_draft: .*{message}"):
        load_draft(write(tmp_path, name, tensors(name), **changes), target)


@pytest.mark.parametrize("kind", ["glm4_moe", "deepseek_v3"])
def test_the_module_is_found_in_the_targets_folder(kind: str, tmp_path: Path) -> None:
    """Only the file with the module is read, as a second copy of a large target would not fit."""
    changes: dict[str, Any] = {field: SIGMOID[field] for field in EXPERT_FIELDS}
    changes["first_k_dense_replace"] = 1
    model, text = tiny(kind, initializer_range=0.3, **changes), prompt(9)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / FILES[0])
    name = "glm" if kind == "glm4_moe" else "deepseek"
    own = tiny(kind, seed=3, num_hidden_layers=3, initializer_range=0.3, **changes)
    own.save_pretrained(tmp_path / "more")
    layers = load_file(tmp_path / "more" / "model.safetensors")
    prefix = "model.layers.2."
    module = {part: weight for part, weight in layers.items() if part.startswith(prefix)}
    module |= {
        prefix + part: weight
        for part, weight in (
            (part.removeprefix(NAMES[name][0]), weight) for part, weight in tensors(name).items()
        )
        if part.startswith(("enorm", "hnorm", "eh_proj", "shared_head"))
    }
    save_file(module, tmp_path / FILES[1])
    index = dict.fromkeys(load_file(tmp_path / FILES[0]), FILES[0]) | dict.fromkeys(
        module, FILES[1]
    )
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    target = load_target(tmp_path)
    (tmp_path / FILES[0]).unlink()  # the target's weights may be a map of it
    (tmp_path / FILES[0]).touch()
    draft = load_draft(tmp_path, target)
    assert isinstance(draft, MtpDraft) and not draft.capturable
    assert torch.equal(draft.eh_proj[0].weight, module[f"{prefix}eh_proj.weight"])
    result = generate(target, draft, text, 12, depth=3, tree_width=4, tree_size=12)
    assert result.tokens.tolist() == greedy(model, text, 12).tolist()


def test_mimo_is_qwen2_beside_its_module(tmp_path: Path) -> None:
    """Transformers does not know the type, and its code in the folder is not run."""
    model, text = tiny("qwen2", initializer_range=0.3, intermediate_size=INNER), prompt(9)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors") | tensors("mimo")
    fields = {name: CONFIGS["mimo"][name] for name in ("model_type", "auto_map")}
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    target = load_target(tmp_path)
    result = generate(target, load_draft(tmp_path, target), text, 12, depth=3)
    assert result.tokens.tolist() == greedy(model, text, 12).tolist()


def test_a_type_that_transformers_does_not_have_yet(
    tmp_path: Path, target: CausalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAME_LAYER, "glm4_moe", "glm9_moe")
    message = "model_type: expected one that transformers .* has, got 'glm9_moe'"
    with pytest.raises(ValueError, match=message):
        load_draft(write(tmp_path, "glm", tensors("glm")), target)


def test_tensors_that_do_not_fit(tmp_path: Path, target: CausalModel) -> None:
    state = tensors("glm")

    def refused(state: dict[str, Tensor], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_draft(write(tmp_path, "glm", state), target)

    name = "model.layers.46."
    twice = {
        f"model.layers.47.{part}": w.clone()
        for part, w in [("eh_proj.weight", state[name + "eh_proj.weight"])]
    }
    refused(state | twice, "num_nextn_predict_layers: expected 2, got 1")
    gap = {name.replace("47", "48"): weight for name, weight in twice.items()}
    message = "expected 3 MTP modules, model.layers.46. to model.layers.48., got model.layers.46"
    refused(state | gap, message)
    refused(state | {f"{name}extra": torch.ones(1)}, r"unknown tensors \['layers.0.extra'\]")
    refused({n: w for n, w in state.items() if "hnorm" not in n}, r"missing .*\['hnorm.0.weight'\]")
    gone = f"{name}mlp.experts.2.up_proj.weight"
    refused({n: w for n, w in state.items() if n != gone}, r"(unknown|missing) tensors .*experts.2")
    with pytest.raises(ValueError, match=r"missing fields \['hidden_size'"):
        write(tmp_path, "glm", state)
        (tmp_path / "config.json").write_text('{"model_type": "glm4_moe"}')
        load_draft(tmp_path, target)
