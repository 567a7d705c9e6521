# SPDX-License-Identifier: Apache-2.0
"""Sampling with random numbers that depend only on seed and position.

Drafting therefore cannot change the text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranking import likeliest

BROKEN = -2
WORD = 0xFFFFFFFF
# Rotations of Threefry-2x32-20, and the start value of its third key word.
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
# SplitMix64's constants, as int64 with the same bits.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from logits.

    temperature: the divisor of the logits; 0 takes the likeliest token and ignores the other
        fields.
    top_p: keep the fewest likeliest tokens whose probabilities reach this sum, in (0, 1].
    top_k: keep the k likeliest tokens and those equal to the last of them; 0 keeps all.
    seed: in [0, 2^64). Equal seeds give equal texts, so independent texts need different seeds.

    Raises TypeError or ValueError, naming the argument.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "top_k", "seed"):
            got, whole = getattr(self, name), name in ("top_k", "seed")
            if not isinstance(got, int if whole else (int, float)) or isinstance(got, bool):
                expected = "an int" if whole else "a number"
                raise TypeError(f"Sampling: {name}: expected {expected}, got {type(got).__name__}")
        bounds = {
            "temperature": (0 <= self.temperature < math.inf, ">= 0 and finite"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "top_k": (self.top_k >= 0, ">= 0"),
            "seed": (0 <= self.seed < 2**64, "in [0, 2^64)"),
        }
        for name, (fits, expected) in bounds.items():
            if not fits:
                raise ValueError(
                    f"Sampling: {name}: expected {expected}, got {getattr(self, name)}"
                )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the distribution of the next token, fp64 [..., V], from logits [..., V].

        The order is that of `transformers`: temperature, then top-k, then top-p. Among equal logits
        top-k keeps all or none; if the edge of top-p runs among them, top-p keeps the lower ids.
        Temperature 0 gives probability 1 to the first of the largest logits (NaN is largest, as in
        `torch.argmax`).

        Raises ValueError: with a temperature above 0, the largest logit of a row is NaN or
        infinite.
        """
        largest = logits.amax(-1)
        if self.temperature and not bool(largest.isfinite().all()):
            raise not_finite(largest[~largest.isfinite()][0].item())
        return self.shares(logits)

    def shares(self, logits: Tensor) -> Tensor:
        """Return `probabilities` without its check, which waits for the device.

        The result is undefined in rows whose largest logit is not finite.
        """
        if self.temperature == 0:
            certain = torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)
            return certain.scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        largest = logits.amax(-1, keepdim=True).double()
        # Subtract first: the difference cannot overflow, however low the temperature is.
        scores = (logits.double() - largest) / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            scores[scores < scores.topk(self.top_k).values[..., -1:]] = -math.inf
        if self.top_p < 1:
            rising, tokens = (part.flip(-1) for part in scores.sort(descending=True, stable=True))
            unlikely = rising.softmax(-1).cumsum(-1) <= 1 - self.top_p
            unlikely[..., -1] = False
            scores[unlikely.scatter(-1, tokens, unlikely)] = -math.inf
        return scores.softmax(-1)


def not_finite(got: object) -> ValueError:
    """Return the error for a row whose largest logit is not finite, at a temperature above 0."""
    return ValueError(f"Sampling: logits: expected a finite largest logit in every row, got {got}")


def choose(logits: Tensor, uniforms: Tensor | None, sampling: Sampling) -> Tensor:
    """Choose the next token of each row: logits [..., V], uniforms fp64 [...] in [0, 1).

    A greedy choice needs no uniforms.

    Returns int64 [...]. See `race`. Nothing waits for the device: at a temperature above 0, a row
    whose largest logit is not finite gives BROKEN.
    """
    if sampling.temperature == 0:
        return likeliest(logits, 1)[..., 0]
    assert uniforms is not None
    drawn = race(sampling.shares(logits), uniforms)
    return drawn.where(logits.amax(-1).isfinite(), BROKEN)


def checked(tokens: Sequence[int]) -> Sequence[int]:
    """Return tokens that `choose` gave, on the host. Raises ValueError if one of them is BROKEN."""
    if BROKEN in tokens:
        raise not_finite("NaN or infinity")
    return tokens


def race(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw the token with the earliest of V exponential times, whose rates are the probabilities.

    probabilities [..., V] of sum 1; uniforms fp64 [...], multiples of 2^-53 in [0, 1). Each number
    determines all V times of its row. Returns int64 [...], never a token of probability 0.

    Each token is the earliest with its own probability (the Gumbel-max trick, applied to times).
    Rounding of the probabilities changes the result only if two times are nearly equal, so two
    passes that round differently still choose the same token. An inverse CDF would be more
    sensitive: its edges over 10^5 tokens lie much closer together.
    """
    keys = splitmix64((uniforms * 2.0**53).long(), torch.zeros_like(uniforms, dtype=torch.int64))
    tokens = torch.arange(probabilities.shape[-1], device=probabilities.device)
    # 52 bits plus a half: never 0 or 1, so no time is infinite or 0.
    words = logical_shift(splitmix64(keys[..., None], tokens), 12)
    uniform = (words.double() + 0.5) * 2.0**-52
    return (-uniform.log() / probabilities).argmin(-1)


def splitmix64(state: Tensor, index: Tensor) -> Tensor:
    """Return output `index` (from 0) of SplitMix64 started at `state`: int64 as 64 bits, broadcast.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    word = state + (index + 1) * GAMMA
    for shift, factor in MIX:
        word = (word ^ logical_shift(word, shift)) * factor
    return word ^ logical_shift(word, 31)


def logical_shift(words: Tensor, bits: int) -> Tensor:
    """Shift int64 words, taken as 64 bits, to the right and fill with zeros."""
    return words >> bits & (1 << 64 - bits) - 1


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw tokens by inverse CDF, in the order of token ids.

    This takes a third of the time of `race`. It serves chains, where no other pass has to choose
    the same token.

    probabilities [..., V] >= 0, of any positive sum; uniforms fp64 [...] in [0, 1). Returns int64
    [...], never a token of probability 0.

    Shares are truncated to whole multiples of 2^-52 of the sum. Their running sums are exact
    integers, the same in any order of addition on any device. A share of 0 stays 0.
    """
    shares = probabilities.double()
    ends = (shares * (2.0**52 / shares.sum(-1, keepdim=True))).long().cumsum(-1)
    # For an integer n <= 2^53 and u <= 1 - 2^-53, u * n rounds to less than n.
    at = (uniforms[..., None] * ends[..., -1:].double()).long()
    return torch.searchsorted(ends, at, right=True)[..., 0]


def uniforms_at(seed: int | Tensor, positions: Tensor, stream: int | Tensor = 0) -> Tensor:
    """Return one number in [0, 1) for each (seed, position, stream): fp64, a multiple of 2^-53.

    positions: int64 [...] in [0, 2^32). seed, in [0, 2^64), and stream, in [0, 2^32): ints, or
        int64 tensors that broadcast with `positions`. Different streams give one position several
        independent numbers.

    The generator is Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy
    as 1, 2, 3", SC 2011; JAX's default generator): a keyed bijection of the counter (position,
    stream) that passes BigCrush over consecutive counters and keys. So a number depends only on
    seed, position and stream, not on the device, the batch or earlier draws.
    """
    keys = [seed & WORD, (seed >> 32) & WORD]
    keys.append(PARITY ^ keys[0] ^ keys[1])
    left, right = (positions + keys[0]) & WORD, (keys[1] + stream) & WORD
    for turn in range(1, 6):
        for rotation in ROTATIONS[(turn - 1) % 2]:
            left = (left + right) & WORD
            right = ((right << rotation | right >> (32 - rotation)) & WORD) ^ left
        left = (left + keys[turn % 3]) & WORD
        right = (right + keys[(turn + 1) % 3] + turn) & WORD
    # 32 bits of one word and 21 of the other: a double's mantissa holds 53.
    return (left << 21 | right >> 11).double() * 2.0**-53
