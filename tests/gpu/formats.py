# SPDX-License-Identifier: Apache-2.0
"""The narrow number formats by definition, as reference for the conversions of cuda/ptx.cuh."""

import numpy as np

F16_NAN, BF16_NAN, E4M3_NAN = 0x7FFF, 0x7FFF, 0x7F
E4M3_LARGEST = 448.0


def pairs(values: np.ndarray) -> np.ndarray:
    """Pack two codes per word, the first in the low half (or low byte, for 8-bit codes)."""
    width = values.dtype.itemsize * 8
    low, high = values.reshape(-1, 2).astype(np.uint32).T
    return np.ascontiguousarray(low | high << width)


def f16_values() -> np.ndarray:
    """Return the values of all 65536 codes as float32."""
    return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def e4m3_values() -> np.ndarray:
    """Return the values of all 256 codes as float32: bias 7, no infinity, all ones is NaN."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(
        exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0)
    )
    magnitude[codes & 0x7F == 0x7F] = np.nan
    return np.where(codes & 0x80, -magnitude, magnitude).astype(np.float32)


def bf16_codes(values: np.ndarray) -> np.ndarray:
    """Convert float32 to bf16: round to nearest, ties to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    codes = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), BF16_NAN, codes).astype(np.uint16)


def f16_codes(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        codes = values.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(values), F16_NAN, codes).astype(np.uint16)


def e4m3_codes(values: np.ndarray) -> np.ndarray:
    """Convert float32 to e4m3: round to nearest, ties to the even code, clamp to ±448."""
    grid = e4m3_values()[:127].astype(np.float64)  # codes 0 to 126, ascending
    with np.errstate(invalid="ignore"):  # a signalling NaN
        magnitude = np.minimum(np.abs(values.astype(np.float64)), E4M3_LARGEST)
    above = np.searchsorted(grid, np.nan_to_num(magnitude)).clip(1, 126)
    below = above - 1
    to_below, to_above = magnitude - grid[below], grid[above] - magnitude
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    codes = np.where(up, above, below) | np.where(np.signbit(values), 0x80, 0)
    return np.where(np.isnan(values), E4M3_NAN, codes).astype(np.uint8)


def hard_floats(grid: np.ndarray, seed: int) -> np.ndarray:
    """Return float32 numbers that show how a conversion to the finite values ``grid`` rounds.

    They are each value of the grid, the middle to the next value and the floats beside it; numbers
    beyond the largest value; subnormals, zeros, infinities and NaN; and random bits. Their count is
    even, their order random.
    """
    finite = np.unique(grid[np.isfinite(grid)].astype(np.float64))
    middles = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    ends = np.array(
        [np.nextafter(np.float32(m), np.float32(s)) for m in middles for s in (-9e9, 9e9)]
    )
    largest = np.float32(finite[-1])
    with np.errstate(over="ignore"):
        beyond = [largest * np.float32(factor) for factor in (1.01, 1.04, 1.07)]
    special = [0.0, np.inf, np.nan, largest, *beyond]
    special += [1e-45, 1e-40, 1.1754944e-38, 3.4028235e38, 2.0**-10, 2.0**-24, 2.0**-25, 2.0**-26]
    both = np.array(special, dtype=np.float32)
    bits = np.random.default_rng(seed).integers(0, 2**32, 2**16, dtype=np.uint32)
    parts = [finite.astype(np.float32), middles, ends.astype(np.float32), both, -both]
    values = np.concatenate([*parts, bits.view(np.float32)])
    values = np.concatenate([values, values[: len(values) % 2]])
    return np.random.default_rng(seed).permutation(values)
