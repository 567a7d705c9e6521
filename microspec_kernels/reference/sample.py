# SPDX-License-Identifier: Apache-2.0
"""The meaning of sparse_sample: the numbers, the weights and the draw."""

from typing import Any

import torch
from torch import Tensor

from .head import sparse_head, sparse_logits
from .indexing import by_group


def philox4x32_10(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Compute ten rounds of Philox4x32 (Salmon et al., SC 2011), as Random123 does."""
    (a, b, c, d), (first, second) = counter, key
    for _ in range(10):
        x, y = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (y >> 32) ^ b ^ first, y % 2**32, (x >> 32) ^ d ^ second, x % 2**32
        first, second = (first + 0x9E3779B9) % 2**32, (second + 0xBB67AE85) % 2**32
    return a, b, c, d


DRAW_SALT = 0x64726177  # "draw": no other use of Philox with an engine's seeds has these numbers


def draw_number(seed: int, position: int) -> int:
    """Return 2^64 · u, u in (0, 1) with 53 bits and a half, for int64 seed and position."""
    seed, position = seed % 2**64, position % 2**64
    counter = (position % 2**32, position >> 32, 0, DRAW_SALT)
    high, low, _, _ = philox4x32_10(counter, (seed % 2**32, seed >> 32))
    return (2 * ((high << 21) | (low >> 11)) + 1) << 10


def draw_unit(capacity: int) -> int:
    """Return the largest power of two of which K weights sum up to 2^62 at most."""
    return 1 << max(62 - max(capacity - 1, 0).bit_length(), 0)


def sparse_sample(
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    packed: bool = False,
    group_ids: Tensor | None = None,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    row_tokens: Tensor | None = None,
    token_logits: Tensor | None = None,
    logit_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw a token of each row; write its logits by token into a row of ``token_logits``.

    The weight of a slot is floor(exp((z - max z) / temperature) · unit), see ``draw_unit``: an
    integer, so that sums are exact in any order. The row draws the first slot at which the running
    sum is above floor(u · total).

    Returns:
        tokens int64 [M] and log_probs fp32 [M].
    """
    operands = hidden, weight, active_ids
    options: dict[str, Any] = {"packed": packed, "group_ids": group_ids, "bias": bias}
    options |= {"weight_scale": weight_scale, "logit_scale": logit_scale, "softcap": softcap}
    z = sparse_logits(*operands, **options)
    best = sparse_head(*operands, 1, **options)[1][:, 0]
    ids = by_group(active_ids)
    group_of = [0] * len(z) if group_ids is None else group_ids.expand(len(z)).tolist()
    rows = range(len(z)) if logit_rows is None else logit_rows.tolist()
    unit = draw_unit(ids.size(1))
    tokens = torch.full((len(z),), -1, device=hidden.device)
    log_probs = torch.full((len(z),), float("-inf"), device=hidden.device)
    for m, group in enumerate(group_of):
        slots = (ids[group] >= 0).nonzero().flatten() if group >= 0 else ids.new_empty(0).long()
        logits, named = z[m, slots], ids[group, slots].long()
        own = named if row_tokens is None else row_tokens[named]
        if token_logits is not None and rows[m] >= 0:
            token_logits[rows[m]] = float("-inf")
            stored = (own >= 0) & (own < token_logits.size(1))
            token_logits[rows[m], own[stored]] = logits[stored].to(token_logits.dtype)
        if not len(slots):
            continue
        at, log_probs[m] = int((named == best[m]).nonzero()[0]), 0.0
        temperature, numbers = float(temperatures[m]), ~logits.isnan()
        if temperature > 0 and bool(numbers.any()):
            top = logits[numbers].max()
            exponents = ((logits - top) / temperature).masked_fill(logits == top, 0.0).double()
            weights = (exponents.exp() * unit).nan_to_num(0.0).long()
            sums = weights.cumsum(0)
            drawn = draw_number(int(seeds[m]), int(positions[m])) * int(sums[-1]) >> 64
            at = int((sums <= drawn).sum())
            others = torch.tensor((int(sums[-1]) - unit) / unit, dtype=torch.float64)
            log_probs[m] = exponents[at] - others.log1p()
        tokens[m] = own[at]
        if not bool(numbers.all()):
            log_probs[m] = float("nan")
    return tokens, log_probs
