# SPDX-License-Identifier: Apache-2.0
"""The tiny checkpoints with SGLang's names and formats."""

import json
import shutil
from pathlib import Path

import torch
from checkpoints import HIDDEN, VOCAB, following
from safetensors.torch import load_file, save_file
from torch import Tensor

DRAFTS = {"eagle": "Eagle", "eagle3": "Eagle3", "eagle3_d2t": "Eagle3"}


def convert(checkpoints: Path, folder: Path) -> None:
    """Copy all checkpoints and add "by_two": the target with an LM head that counts by two."""
    shutil.copytree(checkpoints, folder, dirs_exist_ok=True)
    for name, kind in DRAFTS.items():
        path = folder / name / "config.json"
        config = json.loads(path.read_text()) | {"architectures": [f"LlamaForCausalLM{kind}"]}
        path.write_text(json.dumps(config))
    _save(folder / "eagle", _load(folder / "eagle") | {"fc.bias": torch.zeros(HIDDEN)})
    shutil.copytree(folder / "target", folder / "by_two")
    weights = _load(folder / "by_two")
    head = weights["lm_head.weight"]
    weights["lm_head.weight"] = torch.empty_like(head)
    for token in range(VOCAB):
        weights["lm_head.weight"][following(token)] = head[token]
    _save(folder / "by_two", weights)


def _load(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return weights


def _save(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
