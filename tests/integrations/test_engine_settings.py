# SPDX-License-Identifier: Apache-2.0
"""The settings of the engines' plugins: the switch, and errors that name the bad value."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from microspec_kernels.engine import SWITCH, Settings
from microspec_kernels.engine.slots import costs_of_head, num_slots
from microspec_kernels.policy import StepCosts, choose_capacity

ALL = {
    "capacity": 512,
    "vocabulary": "request",
    "target_top_k": 3,
    "learn": True,
    "num_lists": 2,
    "learned_file": "learned.safetensors",
    "frequent_tokens_file": "frequent.npy",
    "mode": "packed",
    "slab_dtype": "int8",
    "dense_steps": True,
}


@pytest.mark.parametrize("value", [None, False, 0, "", "  \n", "0", "false", "null"])
def test_off(value: Any) -> None:
    assert Settings.parse(value) is None


@pytest.mark.parametrize("value", [True, 1, "1", "true", " 1 ", {}, "{}"])
def test_on_with_the_defaults(value: Any) -> None:
    assert Settings.parse(value) == Settings()


def test_every_setting_by_name() -> None:
    for value in (ALL, json.dumps(ALL)):
        settings = Settings.parse(value)
        assert settings == Settings(**ALL)
        assert settings is not None and vars(settings) == ALL
    assert Settings(**ALL).slab_torch_dtype is torch.int8
    assert Settings(mode="packed", slab_dtype="float8_e4m3fn").slab_torch_dtype == (
        torch.float8_e4m3fn
    )
    assert Settings(mode="packed", slab_dtype="int4").slab_torch_dtype is torch.uint8
    assert Settings().slab_torch_dtype is None


def refused(kind: type[Exception], message: str, value: Any) -> None:
    with pytest.raises(kind, match=f"^microspec: {re.escape(message)}"):
        Settings.parse(value)


@pytest.mark.parametrize("text", ["on", "yes", "{capacity: 1}", "{'capacity': 1}", '{"capacity"'])
def test_a_switch_that_is_neither(text: str) -> None:
    assert SWITCH == "MICROSPEC"
    refused(
        ValueError, f"MICROSPEC: expected 0, 1 or a JSON object of settings, got {text!r}", text
    )


@pytest.mark.parametrize("value", [2, -1, "2", [], "[]", '"on"', 0.5, "NaN", ["capacity"], object])
def test_something_else(value: Any) -> None:
    refused(TypeError, "expected true, false or an object of settings, got ", value)


@pytest.mark.parametrize("name", ["capacitiy", "K", "Capacity", "", 3])
def test_a_name_that_is_no_setting(name: Any) -> None:
    """The error lists all settings, so that the user finds a typo at once."""
    with pytest.raises(ValueError, match=f"got {name!r}$") as error:
        Settings.parse({"capacity": 5, name: 1})
    assert all(repr(setting) in str(error.value) for setting in ALL)


@pytest.mark.parametrize(
    ("name", "least"), [("capacity", 1), ("target_top_k", 0), ("num_lists", 1)]
)
def test_numbers(name: str, least: int) -> None:
    for value in (least - 1, -3):
        refused(ValueError, f"{name}: expected at least {least}, got {value}", {name: value})
    for value in (True, 1.0, "3072", None, [3]):
        refused(TypeError, f"{name}: expected an int, got {value!r}", {name: value})
    assert getattr(Settings(**{name: 1}), name) == 1


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("vocabulary", ["shared", "request"]),
        ("mode", ["indexed", "packed"]),
        ("slab_dtype", [None, "int8", "float8_e4m3fn", "int4"]),
    ],
)
def test_choices(name: str, choices: list[str | None]) -> None:
    wrong: list[Any] = ["Shared", "", 1, ["packed"], torch.int8]
    wrong += [] if None in choices else [None]
    for value in wrong:
        refused(ValueError, f"{name}: expected one of {choices}, got {value!r}", {name: value})


def test_a_slab_dtype_without_a_slab() -> None:
    got = {"mode": "indexed", "slab_dtype": "int8"}
    refused(ValueError, "slab_dtype: expected mode 'packed', got 'indexed'", got)
    refused(ValueError, "slab_dtype: expected mode 'packed', got 'indexed'", {"slab_dtype": "int8"})


def test_learning() -> None:
    for value in (1, 0, "true", None):
        refused(TypeError, f"learn: expected true or false, got {value!r}", {"learn": value})
    refused(TypeError, "learned_file: expected the path of a file, got int", {"learned_file": 3})


@pytest.mark.parametrize("value", [1, 0, None, "on", "true"])
def test_dense_steps_that_are_neither(value: Any) -> None:
    message = f"dense_steps: expected true, false or 'auto', got {value!r}"
    refused(TypeError, message, {"dense_steps": value})


@pytest.mark.parametrize(
    ("dense_steps", "capacity", "by_cost"),
    [
        ("auto", "auto", True),
        ("auto", 3072, False),
        (True, 3072, True),
        (False, "auto", False),
    ],
)
def test_cost_decides_unless_the_capacity_was_forced(
    dense_steps: Any, capacity: Any, by_cost: bool
) -> None:
    assert Settings(dense_steps=dense_steps, capacity=capacity).dense_by_cost == by_cost
    without = {"learn": False, "learned_file": "learned.safetensors"}
    refused(ValueError, "learned_file: expected learn true, got false", without)


def test_the_frequency_list(tmp_path: Path) -> None:
    path = tmp_path / "frequent.npy"
    np.save(path, np.array([5, 2, 9], dtype=np.int32))
    assert Settings(frequent_tokens_file=str(path)).read_frequent_tokens().tolist() == [5, 2, 9]
    assert Settings().read_frequent_tokens().tolist() == []
    refused(
        TypeError,
        "frequent_tokens_file: expected the path of a file, got list",
        {"frequent_tokens_file": [5, 2]},
    )
    with pytest.raises(OSError, match="absent"):
        Settings(frequent_tokens_file=str(tmp_path / "absent.npy")).read_frequent_tokens()
    for wrong in (np.array([0.5]), np.array([[1, 2]]), np.array(["a"])):
        np.save(path, wrong)
        with pytest.raises(ValueError, match=r"frequent.npy: expected an .npy of integers"):
            Settings(frequent_tokens_file=str(path)).read_frequent_tokens()
    path.write_text("5\n2\n")
    with pytest.raises(ValueError, match=r"frequent.npy: expected an .npy of integers"):
        Settings(frequent_tokens_file=str(path)).read_frequent_tokens()


def test_settings_stay_as_they_are() -> None:
    settings = Settings()
    with pytest.raises(AttributeError):
        settings.capacity = 5  # type: ignore[misc]
    assert hash(settings) == hash(Settings())


def test_the_capacity_auto() -> None:
    """What the costs are worth, room to grow in a shared vocabulary that learns, 3072 without."""
    costs = StepCosts(15e9, 0.5e9, 8192, 128256)
    assert choose_capacity(costs).capacity == 16384
    assert num_slots(Settings(), costs, 128256) == 32768
    assert num_slots(Settings(learn=False), costs, 128256) == 16384
    assert num_slots(Settings(mode="packed"), costs, 128256) == 16384
    assert num_slots(Settings(), replace(costs, shared=False), 128256) == 16384
    assert num_slots(Settings(), costs, 900) == 900
    assert num_slots(Settings(), None, 128256) == 3072
    assert num_slots(Settings(learn=False), replace(costs, num_rows=32000), 32000) == 3072
    assert num_slots(Settings(capacity=77), costs, 128256) == 77
    for dtype, share in (("int4", 4.5 / 16), ("int8", 0.5), (None, None)):
        packed = Settings(mode="packed", slab_dtype=dtype)
        got = costs_of_head(costs, packed, torch.empty(2, 2, dtype=torch.bfloat16), shared=False)
        assert got == replace(costs, shared=False, slab_row_bytes=share and share * 8192)
    with pytest.raises(TypeError, match="capacity: expected an int, got 'much'"):
        Settings(capacity="much")  # type: ignore[arg-type]
