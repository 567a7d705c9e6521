# SPDX-License-Identifier: Apache-2.0
"""Train the target language model on the token streams that data.py wrote."""

import argparse

import numpy as np
import torch
from torch import Tensor

from data import BOS, VOCAB, fixed_windows, random_windows
from loop import Run, add_options
from model import Config, Llama
from sampled import Candidates, full_loss, sampled_loss


def document_mask(tokens: Tensor) -> Tensor:
    """Return a mask that is True where a position may look: back to its document's start."""
    document = (tokens == BOS).cumsum(1)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=tokens.device).tril()


@torch.no_grad()
def measure(model: Llama, stream: np.ndarray, length: int, rows: int) -> tuple[float, float]:
    """Return loss and accuracy over the whole vocabulary, on fixed windows of a stream."""
    weight = model.embed_tokens.weight
    window = fixed_windows(stream, rows, length + 1).to(weight.device)
    features, targets = [], []
    for part in window.split(8):
        features.append(model(part[:, :-1], document_mask(part[:, :-1])).flatten(0, 1))
        targets.append(part[:, 1:].flatten())
    return full_loss(torch.cat(features), weight, torch.cat(targets))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, steps=3000)
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train = np.load(args.cache / "train.npy")
    test = np.load(args.cache / "test.npy")
    counts = np.bincount(train, minlength=VOCAB)
    candidates = Candidates(counts, args.rows * args.length, args.frequent, args.uniform)
    model = Llama(Config()).to(args.device)
    forward = torch.compile(model) if args.compile else model
    run = Run(args, model, ["test_loss", "test_accuracy"])
    # A resumed run draws new windows and does not repeat the first ones.
    rng = np.random.default_rng([args.seed, run.step])
    for _ in run.steps():
        batch = random_windows(train, rng, args.rows, args.length + 1).to(args.device)
        tokens, targets = batch[:, :-1], batch[:, 1:].flatten()
        drawn, log_drawn = candidates.draw(targets)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            features = forward(tokens, document_mask(tokens)).flatten(0, 1)
            rows = model.embed_tokens(drawn)
        loss = sampled_loss(features, rows, log_drawn, torch.searchsorted(drawn, targets))
        if run.descend(loss):
            run.record(measure(model, test, args.length, 24))


if __name__ == "__main__":
    main()
