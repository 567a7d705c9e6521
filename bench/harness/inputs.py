# SPDX-License-Identifier: Apache-2.0
"""Make the random inputs that all benchmarks share."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def make_weight(vocab_size: int, dim: int, device: str = "cpu") -> Tensor:
    """Make random bf16 rows [V, D], scaled by 1 / sqrt(D), without an fp32 copy of them all."""
    weight = torch.empty(vocab_size, dim, dtype=torch.bfloat16, device=device)
    for chunk in weight.split(8192):
        chunk.copy_(torch.randn(chunk.shape, device=device) * dim**-0.5)
    return weight


def id_sets(vocab_size: int, capacity: int, count: int, device: str = "cpu") -> list[Tensor]:
    """Draw sets of active ids from all of the vocabulary.

    Two sets share no id as long as the vocabulary has enough of them.
    """
    ids: list[Tensor] = []
    while len(ids) < count:
        ids += (
            torch.randperm(vocab_size, device=device)
            .int()
            .split(capacity)[: vocab_size // capacity]
        )
    return [chunk.clone() for chunk in ids[:count]]


def in_turn(call: Callable[[int], tuple[Tensor, ...]], count: int) -> Callable[[], Any]:
    """Return a function that calls `call` with 0 to count - 1, again and again."""
    turn = itertools.cycle(range(count))
    return lambda: call(next(turn))
