# SPDX-License-Identifier: Apache-2.0
"""The common part of both trainings: optimizers, learning rate, checkpoints and the curve."""

import csv
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm


def add_options(parser: ArgumentParser, steps: int) -> None:
    """Add the command-line options that both trainings have."""
    parser.add_argument("--cache", type=Path, required=True, help="folder of the token streams")
    parser.add_argument("--checkpoint", type=Path, required=True, help="resumed from if there")
    parser.add_argument("--curve", type=Path, required=True, help="a CSV file to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rate", type=float, default=2e-3, help="of the embedding and vectors")
    parser.add_argument("--muon-rate", type=float, default=2e-2, help="of the other matrices")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--every", type=int, default=250, help="steps between measurements")
    parser.add_argument("--frequent", type=int, default=3000, help="negatives by root frequency")
    parser.add_argument("--uniform", type=int, default=1000, help="negatives from all tokens")
    parser.add_argument("--seed", type=int, default=0)


class Run:
    """A training that can be interrupted and resumed at each measurement's checkpoint."""

    def __init__(self, args: Namespace, model: nn.Module, columns: Iterable[str]) -> None:
        self.args, self.model = args, model
        sparse = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
        linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
        vectors = [p for p in model.parameters() if p.dim() == 1]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(linear, lr=args.muon_rate, weight_decay=0.01),
            torch.optim.Adam(vectors, lr=args.rate),
        ]
        if sparse:
            adam = torch.optim.SparseAdam(sparse, lr=args.rate, betas=(0.9, 0.99))
            self.optimizers.append(adam)
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        if args.checkpoint.exists():
            saved = torch.load(args.checkpoint, map_location=args.device)
            self.step, self.seconds = saved["step"], saved["seconds"]
            model.load_state_dict(saved["model"])
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        else:
            head = ["step", "tokens", "seconds", "sampled_loss", *columns]
            args.curve.write_text(",".join(head) + "\n")

    def rate(self) -> float:
        """Return the rate's factor: a warm-up, 1 until 40 % of the steps, then linear to zero."""
        steps = self.args.steps
        return min(1.0, (self.step + 1) / self.args.warmup, (steps - self.step) / (0.6 * steps))

    def steps(self) -> Iterator[int]:
        """Yield the remaining steps. Counts their time without the time of measurements."""
        with tqdm(total=self.args.steps, initial=self.step, mininterval=5) as progress:
            while self.step < self.args.steps:
                self.began = time.perf_counter()
                yield self.step
                progress.update()
                progress.set_postfix(loss=f"{self.losses[-1]:.3f}", refresh=False)

    def descend(self, loss: Tensor) -> bool:
        """Take one optimizer step; return True if it is time to measure."""
        loss.backward()
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * self.rate()
            optimizer.step()
            optimizer.zero_grad()
        self.losses.append(loss.item())
        self.step += 1
        self.seconds += time.perf_counter() - self.began
        return self.step % self.args.every == 0 or self.step == self.args.steps

    def record(self, measured: Iterable[float]) -> None:
        """Add a row to the curve and save a checkpoint."""
        tokens = self.step * self.args.rows * self.args.length
        values = [sum(self.losses) / len(self.losses), *measured]
        # An interrupted and resumed run leaves a gap in this mean but not in the weights.
        self.losses = self.losses[-1:]
        with self.args.curve.open("a", newline="") as file:
            shown = [f"{value:.4f}" for value in values]
            csv.writer(file).writerow([self.step, tokens, round(self.seconds), *shown])
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        # Write another file and rename it: an interrupted save keeps the last checkpoint intact.
        partial = self.args.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.args.checkpoint)
