# SPDX-License-Identifier: Apache-2.0
"""Losses over a sampled part of the vocabulary, and measurements over all of it."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
ROUND = 512
# Subtracting this from a logit makes its probability 0; infinity would give 0 * inf.
NEVER = 1e4


class Candidates:
    """The tokens that a batch is scored against, drawn at random with known probabilities."""

    def __init__(self, counts: np.ndarray, batch_tokens: int, frequent: int, uniform: int) -> None:
        by_root = np.sqrt(counts / counts.sum())
        by_root /= by_root.sum()
        self.vocab = len(counts)
        self.cumulative = torch.from_numpy(by_root.cumsum())
        self.frequent, self.uniform = frequent, uniform
        # A token is missed only if it is neither in the batch nor among the two kinds of negatives.
        missed = (
            batch_tokens * np.log1p(-counts / counts.sum())
            + frequent * np.log1p(-by_root)
            + uniform * np.log1p(-1 / self.vocab)
        )
        self.log_drawn = torch.from_numpy(np.log(-np.expm1(missed))).float()

    def draw(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return candidate tokens, sorted, and the log-probabilities that they are drawn."""
        places = torch.rand(self.frequent, dtype=torch.float64)
        frequent = torch.searchsorted(self.cumulative, places).clamp_(max=self.vocab - 1)
        uniform = torch.randint(self.vocab, (self.uniform,))
        drawn = torch.cat((frequent, uniform)).to(targets.device)
        candidates = torch.cat((targets.flatten(), drawn)).unique()
        log_drawn = self.log_drawn.to(targets.device)[candidates]
        # Matrix libraries cache data for every shape, so keep the number of shapes small: pad with
        # the last token, at no weight.
        spare = -len(candidates) % ROUND
        candidates = torch.cat((candidates, candidates[-1:].expand(spare)))
        return candidates, F.pad(log_drawn, (0, spare), value=NEVER)


class SampledLoss(torch.autograd.Function):
    """Mean cross-entropy over candidates; gradients are computed while a block is in cache."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, rows: Tensor, log_drawn: Tensor, places: Tensor
    ) -> Tensor:
        half_features, half_rows = features.bfloat16(), rows.bfloat16()
        grad_features = torch.empty_like(half_features)
        grad_rows = torch.zeros_like(half_rows, dtype=torch.float32)
        total = features.new_zeros((), dtype=torch.float32)
        for start in range(0, len(features), BLOCK):
            block = slice(start, start + BLOCK)
            x, wanted = half_features[block], places[block, None]
            logits = (x @ half_rows.T).float()
            wanted_logits = logits.gather(1, wanted)
            logits.sub_(log_drawn).scatter_(1, wanted, wanted_logits)
            chances = logits.softmax(-1)
            total -= chances.gather(1, wanted).log().sum()
            chances.scatter_add_(1, wanted, -torch.ones_like(wanted_logits))
            half = chances.bfloat16()
            grad_features[block] = half @ half_rows
            grad_rows += half.T @ x
        ctx.save_for_backward(grad_features, grad_rows)
        return total / len(features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_features, grad_rows = ctx.saved_tensors
        scale = grad / len(grad_features)
        return grad_features * scale, grad_rows * scale, None, None


def sampled_loss(features: Tensor, rows: Tensor, log_drawn: Tensor, places: Tensor) -> Tensor:
    """Return the mean cross-entropy of `places` (targets as indices into the candidates' `rows`).

    Dividing a drawn token's weight by its probability of being drawn makes the sum over the
    candidates an unbiased estimate of the sum over the vocabulary. A position's own target is
    always a candidate, so its weight stays.
    """
    return SampledLoss.apply(features, rows, log_drawn, places)


class ImitationLoss(torch.autograd.Function):
    """Cross-entropy of several predictions against one teacher, block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        predictions: Tensor,
        wanted: Tensor,
        rows: Tensor,
        log_drawn: Tensor,
        weight: Tensor,
    ) -> Tensor:
        half_rows = rows.bfloat16()
        grad = torch.empty_like(predictions)
        total = predictions.new_zeros(())
        # Both sides have the same candidates, so no term has to replace the missing ones.
        left_out = log_drawn.clamp_min(0)
        for start in range(0, len(wanted), BLOCK):
            block = slice(start, start + BLOCK)
            teacher = (wanted[block].bfloat16() @ half_rows.T).float().sub_(left_out).softmax(-1)
            for step, step_weight in enumerate(weight[:, block, None]):
                x = predictions[step, block].bfloat16()
                logs = (x @ half_rows.T).float().sub_(left_out).log_softmax(-1)
                total -= (step_weight[:, 0] * torch.linalg.vecdot(teacher, logs)).sum()
                slope = logs.exp_().sub_(teacher).mul_(step_weight)
                grad[step, block] = (slope.bfloat16() @ half_rows).to(grad.dtype)
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.saved_tensors[0] * grad, None, None, None, None


def imitation_loss(
    predictions: Tensor, wanted: Tensor, rows: Tensor, log_drawn: Tensor, weight: Tensor
) -> Tensor:
    """Return the weighted cross-entropy of two softmaxes over `rows`.

    `predictions` [steps, positions, hidden] give one softmax, `wanted` [positions, hidden] the
    other, the same for each step. `weight` [steps, positions] weights the predictions.
    """
    return ImitationLoss.apply(predictions, wanted, rows, log_drawn, weight)


@torch.no_grad()
def full_loss(features: Tensor, weight: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return cross-entropy and accuracy over the whole vocabulary."""
    loss, right = 0.0, 0
    for part, wanted in zip(features.split(256), targets.split(256), strict=True):
        logits = part.float() @ weight.T
        loss += F.cross_entropy(logits, wanted, reduction="sum").item()
        right += (logits.argmax(-1) == wanted).sum().item()
    return loss / len(targets), right / len(targets)


@torch.no_grad()
def full_agreement(
    predictions: Tensor, wanted: Tensor, weight: Tensor, counting: Tensor
) -> list[float]:
    """Return, for each step, the share of counted positions where both best tokens agree.

    They are the best tokens of the predicted and of the wanted features. `counting` bool [steps,
    positions] selects positions.
    """

    def best(features: Tensor) -> Tensor:
        return torch.cat([(part.float() @ weight.T).argmax(-1) for part in features.split(256)])

    right = best(wanted)
    return [
        (best(predicted) == right)[counts].float().mean().item()
        for predicted, counts in zip(predictions, counting, strict=True)
    ]
