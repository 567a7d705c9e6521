# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with several MTP modules, and their chains in fp64."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microspec_kernels.speculative import CausalModel

from .mtp import CONFIGS, NAMES, Plain, tensors, write

# The field that tells the number of modules; None: the checkpoint's config has none.
COUNTED = {"qwen3.5": "mtp_num_hidden_layers", "mellum": None, "qwen3-next": None}


def prefix_of(name: str, module: int) -> str:
    """Return the prefix of a module's tensors; Qwen's modules have one."""
    prefix = NAMES[name][0]
    index = prefix.rstrip(".").rpartition(".")[2]
    return prefix.replace(index, str(int(index) + module)) if index.isdigit() else prefix


def parts(name: str, count: int) -> list[dict[str, Tensor]]:
    """Make `count` random modules, each with the names of a checkpoint with one module.

    All have one LM head and one embedding; Qwen's differ in their layer only.
    """
    prefix, layer, *_ = NAMES[name]
    first, *others = states = [tensors(name, seed) for seed in range(count)]
    for state in others:
        for part in state:
            rest = part.removeprefix(prefix)
            if rest.startswith(("embed_tokens", "shared_head.head")) or (
                layer and not rest.startswith(layer)
            ):
                state[part] = first[part]
    return states


def joined(name: str, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint with these modules, each with its own names."""
    prefix, layer, *_ = NAMES[name]
    whole: dict[str, Tensor] = {}
    for module, state in enumerate(states):
        for part, weight in state.items():
            rest = part.removeprefix(prefix)
            if layer and rest.startswith(layer):
                rest = rest.replace("layers.0.", f"layers.{module}.")
            # A file may not hold one tensor under two names.
            whole[prefix_of(name, module) + rest] = weight.clone()
    return whole


def written(folder: Path, name: str, states: list[dict[str, Tensor]], **changes: Any) -> Path:
    """Write the checkpoint of these modules."""
    counted = COUNTED.get(name, "num_nextn_predict_layers")
    count = {} if counted is None else {counted: len(states)}
    if name == "mellum":
        count["mtp_layer_types"] = ["sliding_attention"] * len(states)
    return write(folder, name, joined(name, states), **{**count, **changes})


class PlainModules:
    """The modules in fp64. Module d reads the tokens shifted by d + 1 and module d - 1."""

    def __init__(self, name: str, states: list[dict[str, Tensor]], target: CausalModel) -> None:
        self.modules = [Plain(name, state, target) for state in states]

    def features(self, text: Tensor, before: Tensor, path: list[int]) -> Tensor:
        """Return the feature [D] of the last token of text int64 [n] and drafted tokens after it.

        before: [n - 1, D], the target's of all tokens but the newest.
        """
        text = torch.cat((text, torch.tensor(path, dtype=torch.int64)))
        read, last = before.double(), len(self.modules) - 1
        out = read
        for level in range(len(path) + 1):
            # Below the last module, it goes on with the features that it has found.
            module, length = min(level, last), len(read) + max(0, level - last)
            if level > last:
                read = torch.cat((read, out[-1:]))
            shifted = text[module + 1 :][:length]
            out = self.modules[module].features(shifted, read)
            if level < last:
                read = out
        return out[-1]

    def chain(self, text: Tensor, before: Tensor, depth: int) -> list[int]:
        """Return the chain of likeliest tokens; see `features`."""
        path: list[int] = []
        for _ in range(depth):
            feature = self.features(text, before, path)
            path.append(int(self.modules[0].logits(feature).argmax()))
        return path


SEVERAL = [name for name in CONFIGS if name != "glm-dense"]
