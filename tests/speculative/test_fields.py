# SPDX-License-Identifier: Apache-2.0
"""Every field of an EAGLE draft's config is honoured, refused or logged, by name."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.speculative import CausalModel, load_draft
from microspec_kernels.speculative.checkpoints.fields import UNSUPPORTED

from .eagle3 import FORMATS, SPECULATORS, tensors, write
from .models import SIZE, eagle, prompt, tiny
from .test_checkpoint import save_draft

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}


@pytest.fixture(scope="module")
def target() -> CausalModel:
    return CausalModel(tiny("llama", num_hidden_layers=7))


def layer(**changes: Any) -> dict[str, Any]:
    """Return changes of the fields of a `speculators` draft's layers."""
    fields = SPECULATORS["transformer_layer_config"]
    return {"transformer_layer_config": {**fields, **changes}}


@torch.no_grad()
def features(draft: Any) -> Tensor:
    read = torch.randn(1, 8, 3 * SIZE, generator=torch.Generator().manual_seed(0))
    out: Tensor = draft.extend(prompt(9), read, torch.tensor([9]), draft.new_cache())
    return out


@pytest.mark.parametrize("field", UNSUPPORTED)
@pytest.mark.parametrize("name", ["specforge", "speculators"])
def test_a_step_that_the_layers_do_not_have(
    field: str, name: str, tmp_path: Path, target: CausalModel
) -> None:
    """A number that no one expects is refused, a value that changes nothing is not."""
    value = {"no_rope_layers": [0], "is_causal": False, "quantization_config": {"bits": 8}}
    changes = {field: value.get(field, 0.125)}
    changes = layer(**changes) if name == "speculators" else changes
    with pytest.raises(ValueError, match=f"load_draft: .*: {field}: expected .*, got"):
        load_draft(write(tmp_path, name, tensors(name), **changes), target)
    neutral = {f: values[0] for f, values in UNSUPPORTED.items() if values}
    neutral = layer(**neutral) if name == "speculators" else neutral
    load_draft(write(tmp_path, name, tensors(name), **neutral), target)


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("specforge", {"qk_norm": True}, "qk_norm: expected False, as q_norm.weight is not among"),
    ("speculators-qwen3", {"use_qk_norm": False}, "use_qk_norm: expected True, as q_norm"),
    ("specforge", {"fc_bias": True}, "fc_bias: expected False, as fc.bias is not among"),
    ("official", {"bias": True}, "bias: expected False, got True"),
    ("official", {"target_hidden_size": 64}, "target_hidden_size: expected 32, got 64"),
    ("specforge", {"eagle_config": {"use_aux_hidden_state": False}}, "eagle_config: use_aux_hid"),
    ("specforge", {"eagle_config": {"use_mtp_layernorm": True}}, "eagle_config: use_mtp_layernorm"),
    ("specforge", {"eagle_config": {"parallel_draft_step": 4}}, "parallel_draft_step: expected 1"),
    (
        "specforge",
        {"eagle_aux_hidden_state_layer_ids": [2, 3, 5]},
        r"layer_ids: expected \[1, 4, 5\], .* got \[2, 3, 5\]",
    ),
    ("specforge", {"model_type": "mistral", "sliding_window": 0}, "sliding_window: .* 1, got 0"),
    ("specforge", {"model_type": "mistral", "sliding_window": -1}, "sliding_window: .*, got -1"),
    ("specforge", {"rope_scaling": DYNAMIC}, "rope_scaling: expected a rope_type .* 'dynamic'"),
    ("specforge", {"rope_parameters": DYNAMIC}, "rope_parameters: expected a rope_type"),
    ("official", {"rope_scaling": {"type": "longrope"}}, "rope_scaling: .* got 'longrope'"),
    (
        "specforge",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "rope_theta: expected rope_parameters' 500000.0, got 1000000.0",
    ),
    (
        "official",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0},
         "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        "rope_scaling: expected rope_parameters'",
    ),
    (
        "official",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "rope_parameters: partial_rotary_factor: expected 1, got 0.5",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "message"), CONTRADICTIONS, ids=str)
def test_fields_that_contradict_tensors_or_each_other(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path, target: CausalModel
) -> None:
    changes = layer(**changes) if name == "speculators" else changes
    with pytest.raises(ValueError, match=f"load_draft: .*{message}"):
        load_draft(write(tmp_path, name, tensors(name), **changes), target)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what this package has logged of fields."""
    messages = [one.getMessage() for one in caplog.records if one.name.startswith("microspec")]
    return [message.partition(": config field ")[2] for message in messages]


@pytest.mark.parametrize("name", FORMATS)
def test_public_configs_have_no_unknown_field(
    name: str, tmp_path: Path, target: CausalModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="microspec_kernels"):
        load_draft(write(tmp_path, name, tensors(name)), target)
    assert not told(caplog)


def test_an_unknown_field_is_logged(
    tmp_path: Path, target: CausalModel, caplog: pytest.LogCaptureFixture
) -> None:
    """It may say something about a training only, so it does not end the program."""
    changes = {"eagle_config": {"spin": 2}, "colour": "red", "taste": None}
    with caplog.at_level(logging.WARNING, logger="microspec_kernels"):
        load_draft(write(tmp_path, "specforge", tensors("specforge"), **changes), target)
    assert told(caplog) == [
        "colour='red' is not known here, so not applied",
        "eagle_config.spin=2 is not known here, so not applied",
    ]


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"rope_type": "default", "rope_theta": 500.0}, {"rope_theta": 500.0}),
        (
            {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
        ),
    ],
)
def test_rope_parameters_are_read_by_every_transformers(
    new: dict[str, Any], old: dict[str, Any], tmp_path: Path, target: CausalModel
) -> None:
    """Transformers 4 ignores them, so the rotation would be the default one."""
    state = tensors("official")
    plain = features(load_draft(write(tmp_path, "official", state), target))
    before = features(load_draft(write(tmp_path, "official", state, **old), target))
    after = features(load_draft(write(tmp_path, "official", state, rope_parameters=new), target))
    assert torch.equal(before, after) and not torch.equal(plain, after)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("norm_output", True),
        ("fc_norm", True),
        ("norm_before_residual", True),
        ("eagle_aux_hidden_state_layer_ids", [1, 2, 3]),
        ("draft_vocab_size", 60),
    ],
)
def test_eagle_1_does_not_have_the_fields_of_eagle_3(
    field: str, value: Any, tmp_path: Path, target: CausalModel
) -> None:
    folder = save_draft(tmp_path, eagle(target).state_dict())
    load_draft(folder, target)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ValueError, match=f"load_draft: .*{field}: expected"):
        load_draft(folder, target)
