# SPDX-License-Identifier: Apache-2.0
"""Train the EAGLE draft of a target that export.py wrote."""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import BOS, EOS, VOCAB, fixed_windows, random_windows
from export import load_target
from loop import Run, add_options
from model import Config, Draft, Llama
from sampled import Candidates, full_agreement, imitation_loss
from train_target import document_mask

# A later step of drafting matters only if the earlier ones were right.
STEP_WEIGHT = 0.8
FEATURE_WEIGHT = 0.2


def later_mask(mask: Tensor, step: int) -> Tensor:
    """Return which keys position i sees in a later step of drafting, over the keys of all steps.

    The draft of position i began `step` positions earlier. Up to there it sees the target's
    features (the keys of step 0), then one key of each step, the last being its own.
    """
    every = torch.ones_like(mask[0, 0])
    first = mask & every.tril(-step)
    offsets = range(1 - step, 1)
    chain = [every.tril(offset) & every.triu(offset) for offset in offsets]
    return torch.cat((first, *(one.expand_as(mask) for one in chain)), dim=-1)


def unroll(
    draft: Draft, embedded: Tensor, features: Tensor, tokens: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Return the predictions of all steps of drafting, and which of them count.

    The predictions are [steps, rows, pairs, hidden], the second result bool [steps, rows, pairs].
    Pair i has the feature of token i and the embedding of token i + 1, and predicts the feature of
    token i + 1. In each later step its feature is the prediction of pair i - 1.
    """
    mask = document_mask(tokens[:, :-1])
    document = (tokens[:, :-1] == BOS).cumsum(1)
    valid = (tokens[:, 1:] != BOS) & (tokens[:, 1:] != EOS)
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def keep(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys.append(k)
        values.append(v)
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    predictions: list[Tensor] = []
    counting: list[Tensor] = []
    for step in range(steps):
        if step:
            features = F.pad(predictions[-1][:, :-1], (0, 0, 1, 0))
        seen = later_mask(mask, step) if step else mask
        predictions.append(draft(embedded, features, seen, keep))
        same = document == F.pad(document, (step, 0), value=-1)[:, : document.shape[1]]
        counting.append(valid & same)
    return torch.stack(predictions), torch.stack(counting)


def prepare(target: Llama, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the embeddings and features of the pairs, and the features to predict."""
    with torch.no_grad():
        features = target(tokens, document_mask(tokens)).float()
        return target.embed_tokens(tokens[:, 1:]), features[:, :-1], features[:, 1:]


@torch.no_grad()
def measure(target: Llama, draft: Draft, tokens: Tensor, steps: int) -> list[float]:
    """Return each step's share of first choices that are the target's, on fixed windows."""
    embedded, features, wanted = prepare(target, tokens)
    predictions, counting = unroll(draft, embedded, features, tokens, steps)
    weight = target.embed_tokens.weight
    flat = predictions.flatten(1, 2), wanted.flatten(0, 1)
    return full_agreement(*flat, weight, counting.flatten(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, steps=1100)
    parser.add_argument("--target", type=Path, default=Path(__file__).parents[1] / "target")
    parser.add_argument("--streams", nargs="+", default=["train.npy", "generated.npy"])
    parser.add_argument("--unroll", type=int, default=3, help="steps of drafting trained")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    streams = [np.load(args.cache / name) for name in args.streams]
    test = fixed_windows(np.load(args.cache / "test.npy"), 8, args.length).to(args.device)
    counts = np.bincount(streams[0], minlength=VOCAB)
    candidates = Candidates(counts, args.rows * args.length, args.frequent, args.uniform)
    target = load_target(args.target).to(args.device)
    draft = Draft(Config(num_hidden_layers=1)).to(args.device)
    run = Run(args, draft, [f"test_agreement_{step + 1}" for step in range(args.unroll)])
    rng = np.random.default_rng([args.seed, run.step])
    share = args.rows // len(streams)
    for _ in run.steps():
        parts = [random_windows(stream, rng, share, args.length) for stream in streams]
        tokens = torch.cat(parts).to(args.device)
        drawn, log_drawn = candidates.draw(tokens)
        rows = target.embed_tokens(drawn)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            embedded, features, wanted = prepare(target, tokens)
            predictions, counting = unroll(draft, embedded, features, tokens, args.unroll)
        decay = STEP_WEIGHT ** torch.arange(args.unroll, device=args.device)
        weight = counting.flatten(1) * decay[:, None]
        weight = weight / weight.sum()
        predictions, wanted = predictions.flatten(1, 2), wanted.flatten(0, 1)
        distance = F.smooth_l1_loss(predictions, wanted.expand_as(predictions), reduction="none")
        loss = imitation_loss(predictions, wanted, rows, log_drawn, weight)
        loss = loss + FEATURE_WEIGHT * (distance.mean(-1) * weight).sum()
        if run.descend(loss):
            run.record(measure(target, draft, test, args.unroll))


if __name__ == "__main__":
    main()
