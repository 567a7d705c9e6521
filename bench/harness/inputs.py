# SPDX-License-Identifier: Apache-2.0
"""Make the random inputs that all benchmarks share."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from microspec_kernels._checks import E2M1, E2M1_GROUP
from microspec_kernels.reference import E2M1_VALUES


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


def quantise_nvfp4(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise rows [..., D] to nvfp4's layout, as a checkpoint stores a head.

    Returns:
        float4_e2m1fn_x2 [..., D/2], and the float8_e4m3fn scale [..., D/16] for each 16 columns.
    """
    groups = rows.float().unflatten(-1, (-1, E2M1_GROUP))
    scale = (groups.abs().amax(-1) / E2M1_VALUES[-1]).to(torch.float8_e4m3fn)
    scaled = groups / scale.float().clamp(min=torch.finfo(torch.float8_e4m3fn).tiny)[..., None]
    values = torch.tensor(E2M1_VALUES, device=rows.device)
    codes = torch.bucketize(scaled.abs(), (values[1:] + values[:-1]) / 2)
    codes = (codes + 8 * (scaled < 0)).flatten(-2)
    return (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8).view(E2M1), scale


def in_turn(call: Callable[[int], tuple[Tensor, ...]], count: int) -> Callable[[], Any]:
    """Return a function that calls `call` with 0 to count - 1, again and again."""
    turn = itertools.cycle(range(count))
    return lambda: call(next(turn))
