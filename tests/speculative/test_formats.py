# SPDX-License-Identifier: Apache-2.0
"""Errors name the fault of an EAGLE-3 checkpoint, and the method of a foreign draft."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from microspec_kernels.speculative import CausalModel, load_draft
from microspec_kernels.speculative.checkpoints.layer_config import windows

from .eagle3 import ROWS, SPECULATORS, tensors, write
from .models import SIZE, tiny

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def target() -> CausalModel:
    return CausalModel(tiny("llama", num_hidden_layers=7))


def changed(name: str, change: Callable[[Tensor], Any]) -> Callable[[State], State]:
    def apply(state: State) -> State:
        tensor = state[name].clone()
        result = change(tensor)
        return state | {name: tensor if result is None else result}

    return apply


def put(place: int, value: Any) -> Callable[[Tensor], None]:
    return lambda tensor: tensor.__setitem__(place, value)


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {name: t for name, t in state.items() if name not in names}


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"missing tensors \['d2t'\]: .* has 60 rows for 199 tokens", without("d2t", "t2d")),
        (r"missing tensors \['lm_head.weight'\], whose rows d2t", without("lm_head.weight")),
        (r"missing tensors \['norm.weight'\], unknown tensors \[\]", without("norm.weight")),
        (r"missing tensors \['layers.0.hidden_norm", without("midlayer.hidden_norm.weight")),
        (
            r"missing tensors \['layers.0.self_attn.k_norm.weight'\]",
            lambda state: state | {"midlayer.self_attn.q_norm.weight": torch.ones(6)},
        ),
        (
            r"unknown tensors \['layers.0.pre_feedforward_layernorm.weight'\]",
            lambda state: state | {"midlayer.pre_feedforward_layernorm.weight": torch.ones(16)},
        ),
        (
            r"unknown tensors \['layers.0.self_attn.q_proj.bias'\]",
            lambda state: state | {"midlayer.self_attn.q_proj.bias": torch.ones(24)},
        ),
        (
            r"fc.weight: expected shape \[32, 96\], got \[32, 64\]",
            changed("fc.weight", lambda weight: weight[:, :64].clone()),
        ),
        (
            r"embed_tokens.weight: expected shape \[199, 32\], got \[60, 32\]",
            lambda state: state | {"embed_tokens.weight": torch.ones(ROWS, SIZE)},
        ),
        (
            r"lm_head.weight: expected shape \[60, 32\], got \[59, 32\]",
            changed("lm_head.weight", lambda weight: weight[1:].clone()),
        ),
        (r"d2t: expected shape \[60\], got \[59\]", changed("d2t", lambda d2t: d2t[1:].clone())),
        (r"d2t: expected int64, got torch.float32", changed("d2t", lambda d2t: d2t.float())),
        (r"d2t: expected offsets .* \[0, 199\), got 500 for row 3", changed("d2t", put(3, 500))),
        (r"d2t: expected offsets .* \[0, 199\), got -9 for row 3", changed("d2t", put(3, -9))),
        (
            r"d2t: expected another token for each of 60 rows, got 59",
            lambda state: changed("d2t", put(4, int(state["d2t"][3]) - 1))(state),
        ),
        (r"t2d: expected shape \[199\], got \[198\]", changed("t2d", lambda t2d: t2d[1:].clone())),
        (r"t2d: expected True for exactly the tokens", changed("t2d", lambda t2d: ~t2d)),
        (
            r"t2d: .* got False for token",
            lambda state: changed("t2d", put(int(state["d2t"][0]), False))(state),
        ),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said(
    message: str, change: Callable[[State], State], tmp_path: Path, target: CausalModel
) -> None:
    write(tmp_path, "specforge", change(tensors("specforge")))
    with pytest.raises(ValueError, match=rf"load_draft: .*{message}"):
        load_draft(tmp_path, target)


def test_a_vocabulary_that_is_not_the_targets(tmp_path: Path, target: CausalModel) -> None:
    layer = {**SPECULATORS["transformer_layer_config"], "vocab_size": 250}
    write(tmp_path, "speculators", tensors("speculators"), transformer_layer_config=layer)
    with pytest.raises(ValueError, match="vocab_size: expected the target's 199, got 250"):
        load_draft(tmp_path, target)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gemma2"),
        ("model_type", "gpt_oss"),
        ("attention_multiplier", 0.5),
        ("residual_multiplier", 0.22),
        ("embedding_multiplier", 12.0),
        ("logits_scaling", 8.0),
        ("logit_scale", 0.0625),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("query_pre_attn_scalar", 256),
        ("partial_rotary_factor", 0.5),
        ("no_rope_layers", [0]),
        ("attn_temperature_tuning", True),
        ("clip_qkv", 8.0),
        ("sliding_window", 4096),
        ("layer_types", ["chunked_attention"]),
        ("layer_types", ["full_attention"] * 2),
    ],
)
@pytest.mark.parametrize("name", ["specforge", "speculators"])
def test_a_field_that_the_layers_do_not_honour_is_named(
    field: str, value: Any, name: str, tmp_path: Path, target: CausalModel
) -> None:
    config = SPECULATORS["transformer_layer_config"]
    changes = {"transformer_layer_config": {**config, field: value}}
    write(tmp_path, name, tensors(name), **(changes if name == "speculators" else {field: value}))
    with pytest.raises(ValueError, match=rf"load_draft: .*: {field}: expected"):
        load_draft(tmp_path, target)


@pytest.mark.parametrize(
    "fields",
    [
        {"residual_multiplier": 1.0, "logit_scale": 1, "partial_rotary_factor": 1.0},
        {"clip_qkv": None, "final_logit_softcapping": None, "attn_temperature_tuning": False},
        {"sliding_window": None},
        {"sliding_window": 4, "use_sliding_window": False, "model_type": "qwen2"},
        {"sliding_window": 4, "layer_types": ["full_attention"]},
    ],
    ids=str,
)
def test_a_field_without_effect_is_taken(
    fields: dict[str, Any], tmp_path: Path, target: CausalModel
) -> None:
    draft = load_draft(write(tmp_path, "specforge", tensors("specforge"), **fields), target)
    assert list(draft.windows) == [None]


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("mistral", {"sliding_window": 7}),
        ("mixtral", {"sliding_window": 7}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 2}),
        ("qwen3", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 0}),
        ("qwen3", {"sliding_window": 7, "use_sliding_window": True}),
        ("qwen3", {"sliding_window": 7, "use_sliding_window": False}),
        ("qwen2", {"sliding_window": 7}),
        ("llama", {}),
    ],
)
def test_windows_without_layer_types_are_those_of_transformers(
    model_type: str, fields: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(model_type, num_hidden_layers=4, **fields)
    sliding = "sliding_attention"
    kinds = (
        getattr(config, "layer_types", None)
        or [sliding if getattr(config, "sliding_window", None) else "full_attention"] * 4
    )
    want = tuple(fields["sliding_window"] if kind == sliding else None for kind in kinds)
    assert windows(fields, model_type, 4, "") == want


def test_t2d_adds_nothing_and_may_be_missing(tmp_path: Path, target: CausalModel) -> None:
    state = tensors("official")
    whole = load_draft(write(tmp_path, "official", state), target).lm_head.ids
    del state["t2d"]
    state["d2t"] = state["d2t"].int()
    assert torch.equal(load_draft(write(tmp_path, "official", state), target).lm_head.ids, whole)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_prefix_and_rotary_buffers_are_passed_over(
    prefix: str, tmp_path: Path, target: CausalModel
) -> None:
    state = {prefix + name: tensor for name, tensor in tensors("specforge").items()}
    state[prefix + "midlayer.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    loaded = load_draft(write(tmp_path, "specforge", state), target)
    plain = load_draft(write(tmp_path, "specforge", tensors("specforge")), target)
    for name, weight in plain.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


OTHERS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("Medusa heads .by 'medusa_num_heads'", {"medusa_num_heads": 5, "medusa_num_layers": 1}, []),
    ("Medusa heads .by 'MedusaModel'", {"architectures": ["MedusaModel"]}, []),
    ("Hydra heads", {"hydra_num_heads": 4}, []),
    ("an MLP speculator", {"architectures": ["MLPSpeculatorPreTrainedModel"]}, []),
    ("an MLP speculator", {"model_type": "mlp_speculator"}, []),
    ("another multi-token-prediction module .by 'deepseek_mtp'", {
        "architectures": ["DeepSeekMTPModel"], "model_type": "deepseek_mtp",
    }, []),
    ("another multi-token-prediction module", {
        "architectures": ["DeepseekV3ForCausalLMNextN"],
    }, []),
    ("another multi-token-prediction module", {}, ["model.mtp_block.0.input_layernorm.weight"]),
    ("another multi-token-prediction module", {}, ["layers.0.eh_proj.weight"]),
    (r"config.json: missing fields \['hidden_size'", {}, ["model.layers.61.eh_proj.weight"]),
    ("DFlash", {"architectures": ["DFlashDraftModel"], "speculators_model_type": "dflash"}, []),
    ("EAGLE for parallel drafting", {"speculators_model_type": "peagle"}, []),
    ("EAGLE for parallel drafting", {}, ["mask_hidden"]),
    ("speculators_model_type: expected 'eagle3', .* got 'eagle'", {
        "speculators_model_type": "eagle", "architectures": ["EagleSpeculator"],
    }, ["fusion_fc.weight"]),
]  # fmt: skip


@pytest.mark.parametrize(("message", "config", "names"), OTHERS, ids=str)
def test_another_methods_draft_is_named(
    message: str, config: dict[str, Any], names: list[str], tmp_path: Path, target: CausalModel
) -> None:
    """The config alone is enough, because not all have safetensors; the tensors alone are, too."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    if names:
        save_file({name: torch.ones(2) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"load_draft: .*{message}"):
        load_draft(tmp_path, target)
