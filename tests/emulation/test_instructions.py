# SPDX-License-Identifier: Apache-2.0
"""The emulation's arithmetic against numpy and PyTorch, exhaustively if possible."""

from typing import Any

import numpy as np
import pytest
import torch
from emulated import load

RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


def same_floats(got: Array, want: Array) -> None:
    """Assert equality bit for bit; any NaN equals any other."""
    bits = {2: np.uint16, 4: np.uint32}[got.itemsize]
    number = ~(np.isnan(got) & np.isnan(want))
    np.testing.assert_array_equal(got.view(bits)[number], want.view(bits)[number])


def converted(name: str, values: Array, to: type) -> Array:
    out = np.zeros(len(values), to)
    planted = load("planted")
    planted.configure(arch=900)
    assert getattr(planted, name)(out, values) == 0
    return out


def samples() -> Array:
    """Return floats of every exponent, midpoints of narrow neighbours, and special values."""
    narrow = np.arange(65536, dtype=np.uint32)
    bf16 = (narrow << 16).view(np.float32)
    with np.errstate(invalid="ignore"):
        f16 = narrow.astype(np.uint16).view(np.float16).astype(np.float32)
    halves = [bf16, (narrow << 16 | 0x8000).view(np.float32), (narrow << 16 | 1).view(np.float32)]
    e4m3 = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    e4m3 = np.sort(e4m3[np.isfinite(e4m3)])
    for values in (np.sort(f16[np.isfinite(f16)]), e4m3):
        between = (values[1:].astype(np.float64) + values[:-1]) / 2
        halves += [values, between.astype(np.float32)]
        halves += [np.nextafter(between.astype(np.float32), np.float32(x)) for x in (-1e9, 1e9)]
    return np.concatenate([*halves, RNG.integers(0, 2**32, 20000, np.uint32).view(np.float32)])


def test_every_f16() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    same_floats(
        converted("f16_to_float", bits, np.float32), bits.view(np.float16).astype(np.float32)
    )


def test_every_e4m3() -> None:
    bits = np.arange(256, dtype=np.uint8)
    want = torch.from_numpy(bits).view(torch.float8_e4m3fn).half().numpy()
    same_floats(converted("e4m3_to_f16", bits, np.uint16).view(np.float16), want)


def test_rounding_to_f16_and_bf16() -> None:
    values = samples()
    with np.errstate(over="ignore"):
        want = values.astype(np.float16)
    got = converted("float_to_f16", values, np.uint16)
    same_floats(got.view(np.float16), want)
    assert (got[np.isnan(values)] == 0x7FFF).all()
    got = converted("float_to_bf16", values, np.uint16)
    as_float = torch.from_numpy(values).bfloat16().float().numpy()
    same_floats((got.astype(np.uint32) << 16).view(np.float32), as_float)


def test_rounding_to_e4m3_saturates() -> None:
    values = samples()
    got = converted("float_to_e4m3", values, np.uint8)
    largest = np.float32(448)
    clamped = torch.from_numpy(np.clip(values, -largest, largest))  # NaN stays NaN
    want = clamped.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    number = ~np.isnan(values)
    np.testing.assert_array_equal(got[number], want[number])
    assert (got[~number] == 0x7F).all()


@pytest.mark.parametrize("bf16", [True, False])
def test_mma(bf16: bool) -> None:
    planted = load("planted")
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        dtype = torch.bfloat16 if bf16 else torch.float16
        a, b = (torch.randn(s, generator=rng).to(dtype) for s in ((16, 16), (16, 8)))
        d = torch.randn(16, 8, generator=rng)
        got = d.numpy().copy()
        bits = (x.view(torch.int16).numpy().view(np.uint16) for x in (a, b))
        assert planted.mma(got, *bits, bf16) == 0
        want = (d.double() + a.double() @ b.double()).numpy()
        np.testing.assert_allclose(got, want, rtol=2e-7, atol=2e-6)


def reductions(values: Array, mask: int) -> list[Any]:
    """Compute the results of warp_operations up to its shuffles, for the lanes of the mask."""
    lanes = [lane for lane in range(32) if mask >> lane & 1]
    mine = values[lanes]
    words = mine.view(np.uint32)

    def ballot(flags: Array) -> int:
        return sum(1 << lane for lane, flag in zip(lanes, flags, strict=True) if flag)

    return [
        *(ballot(mine > 0), (mine > 1000).any(), (mine > -1000).all()),
        np.array([ballot(mine == value) for value in mine]),
        *(mine.sum(), mine.min(), mine.max(), words.min(), words.max()),
        *(np.bitwise_and.reduce(words), np.bitwise_or.reduce(words)),
        np.bitwise_xor.reduce(words),
    ]


def shuffles(values: Array) -> list[Any]:
    lane, found = np.arange(32), []
    for width in (8, 32):
        first = lane & ~(width - 1)
        last = first + width
        found.append(values[first + 37 % width])
        found.append(values[np.where(lane - 3 >= first, lane - 3, lane)])
        found.append(values[np.where(lane + 3 < last, lane + 3, lane)])
        found.append(values[np.where(lane ^ 13 < last, lane ^ 13, lane)])
    return [*found, np.full(32, values[5]), values[lane ^ 1], values[lane ^ 1]]


@pytest.mark.parametrize("order", ["in order", "shuffled"])
@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0000FFFF, 0x80F00001])
def test_warp_operations(mask: int, order: str) -> None:
    planted = load("planted")
    for seed in range(5):
        planted.configure(order=order, seed=seed)
        values = RNG.integers(-5, 5, 32, dtype=np.int32)
        out = np.full((23, 32), -12345, np.int32)
        assert planted.warp_operations(out, values, mask) == 0
        lanes = [lane for lane in range(32) if mask >> lane & 1]
        want = reductions(values, mask)
        whole = mask == 0xFFFFFFFF
        want += shuffles(values) if whole else []
        for operation, row in enumerate(want):
            row = np.broadcast_to(np.asarray(row, np.int64).astype(np.uint32), len(lanes))
            np.testing.assert_array_equal(
                out[operation, lanes].view(np.uint32), row, str(operation)
            )
        rest = out[: len(want), [lane for lane in range(32) if lane not in lanes]]
        assert (rest == -12345).all() and (out[len(want) :] == -12345).all()


@pytest.mark.parametrize("threads", [1, 32, 70, 512])
def test_block_operations(threads: int) -> None:
    planted = load("planted")
    for seed, values in enumerate(
        (np.ones(threads), np.zeros(threads), RNG.integers(-1, 2, threads))
    ):
        planted.configure(order="shuffled", seed=seed)
        out = np.full((3, threads), -1, np.int32)
        assert planted.block_operations(out, values.astype(np.int32)) == 0
        want = [(values > 0).sum(), (values > 0).all(), (values > 0).any()]
        np.testing.assert_array_equal(out, np.repeat(want, threads).reshape(3, threads))


@pytest.mark.parametrize("order", ["in order", "shuffled"])
def test_atomics(order: str) -> None:
    planted, threads = load("planted"), 100
    planted.configure(order=order)
    cells = np.array([0, 99, 0, 0, 2**32 - 1, 0, 0, 0x80000000, 2**32 - 1, 0], np.uint32)
    assert planted.atomics(cells, threads) == 0
    assert 0 <= cells[8] < threads
    want = [sum(range(threads)), 3, threads - 1, 2**32 - 1, 0xFFFF0000, threads % 7, threads, 0]
    np.testing.assert_array_equal(np.delete(cells, 8), [*want, 1])
