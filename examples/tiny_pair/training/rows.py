# SPDX-License-Identifier: Apache-2.0
"""Weights on disk: matrices as int8 rows with one scale a row, vectors unchanged."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SCALE = "_scale"


def pack(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert every matrix `X` to int8 `X` and fp32 `X_scale`, where row = int8 * scale."""
    packed = {}
    for name, weight in weights.items():
        weight = weight.detach().float().cpu()
        if weight.dim() != 2:
            packed[name] = weight.clone()
            continue
        # A row of zeros has no largest value to divide by, so any scale fits.
        scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        packed[name] = (weight / scale[:, None]).round().to(torch.int8)
        packed[name + SCALE] = scale
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the fp32 weights that `pack` stored."""
    weights = {}
    for name, weight in packed.items():
        if name + SCALE in packed:
            weights[name] = weight.float() * packed[name + SCALE][:, None]
        elif not name.endswith(SCALE):
            weights[name] = weight
    return weights


def save(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, object]) -> None:
    """Write a folder in the layout of a Hugging Face checkpoint, with int8 rows."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(pack(weights), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: Path) -> dict[str, Tensor]:
    """Return the fp32 weights of a folder that `save` wrote."""
    return unpack(load_file(folder / "model.safetensors"))
