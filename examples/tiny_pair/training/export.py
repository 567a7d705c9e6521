# SPDX-License-Identifier: Apache-2.0
"""Write a training checkpoint as a folder with int8 rows."""

import argparse
from pathlib import Path

import torch

from model import Config, Draft, Llama
from rows import load, save

HF_PREFIX = "model."


def load_target(folder: Path) -> Llama:
    """Load the target with the weights it will run with: converted to int8 and back."""
    model = Llama(Config())
    weights = {name.removeprefix(HF_PREFIX): weight for name, weight in load(folder).items()}
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def load_draft(folder: Path) -> Draft:
    """Load the draft with the weights it will run with."""
    model = Draft(Config(num_hidden_layers=1))
    model.load_state_dict(load(folder))
    return model.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["target", "draft"])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="default: the folder named like the kind")
    args = parser.parse_args()
    folder = args.folder or Path(__file__).parents[1] / args.kind
    weights = torch.load(args.checkpoint, map_location="cpu")["model"]
    if args.kind == "target":
        weights = {HF_PREFIX + name: weight for name, weight in weights.items()}
        save(folder, weights, Config().to_hf())
    else:
        save(folder, weights, Config(num_hidden_layers=1).to_hf() | {"bias": True})


if __name__ == "__main__":
    main()
