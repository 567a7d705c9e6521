# SPDX-License-Identifier: Apache-2.0
"""Each function of cuda/ptx.cuh on the device, against the definition that the emulation shares."""

import numpy as np
import pytest
import torch
from torch import Tensor

from . import conformance, formats

PLACES, THREADS, MOST_BYTES = 3, 256, 8192  # as in conformance.cu


def arch() -> int:
    major, minor = torch.cuda.get_device_capability()
    return major * 10 + minor


def call(name: str, *arguments: Tensor | int) -> None:
    stream = torch.cuda.current_stream().cuda_stream
    plain = [_pointer_or_number(a) for a in (*arguments, stream)]
    error = getattr(conformance.library(arch()), name)(*plain)
    assert error == 0, f"{name}: CUDA error {error}"
    torch.cuda.synchronize()


def _pointer_or_number(value: Tensor | int) -> object:
    return conformance.ctypes.c_void_p(value.data_ptr()) if isinstance(value, Tensor) else (
        conformance.ctypes.c_int64(value)
    )  # fmt: skip


def on_device(array: np.ndarray) -> Tensor:
    """Copy the bytes to the device: torch has no dtype for some of the formats."""
    return torch.from_numpy(np.ascontiguousarray(array).view(np.uint8).reshape(-1)).cuda()


def converted(name: str, source: np.ndarray, count: int, dtype: type, width: int = 1) -> np.ndarray:
    """Convert ``count`` elements; each yields ``width`` elements of dtype."""
    out = torch.full((count * width * np.dtype(dtype).itemsize,), 0xA5, dtype=torch.uint8).cuda()
    call(name, on_device(source), out, count)
    return out.cpu().numpy().view(dtype)


def assert_same(got: np.ndarray, want: np.ndarray, source: np.ndarray) -> None:
    bad = np.flatnonzero(got != want)
    assert not len(bad), (
        f"{len(bad)} of {len(got)} differ, the first: {source[bad[0]]!r} "
        f"gave {got[bad[0]]:#x}, not {want[bad[0]]:#x}"
    )


needs_e4m3 = pytest.mark.skipif(
    torch.cuda.is_available() and arch() < 89, reason="e4m3 conversions need sm_89"
)
needs_bulk = pytest.mark.skipif(
    torch.cuda.is_available() and arch() < 90, reason="bulk copies need sm_90"
)


def test_every_f16_code_to_float() -> None:
    codes = np.arange(2**16, dtype=np.uint16)
    got = converted("floats_of_f16", formats.pairs(codes), 2**15, np.float32, 2)
    want = formats.f16_values()
    nan = np.isnan(want)
    assert np.isnan(got[nan]).all()
    assert_same(got.view(np.uint32)[~nan], want.view(np.uint32)[~nan], codes[~nan])


@needs_e4m3
def test_every_e4m3_code_to_f16() -> None:
    codes = np.arange(256, dtype=np.uint8)
    got = converted("f16_of_e4m3", formats.pairs(codes), 128, np.uint16, 2)
    want = formats.e4m3_values()
    nan = np.isnan(want)
    assert np.isnan(got.view(np.float16)[nan]).all()
    exact = want.astype(np.float16).view(np.uint16)
    assert_same(got[~nan], exact[~nan], codes[~nan])


def test_the_high_half_of_an_e4m3_word_is_ignored() -> None:
    if arch() < 89:
        pytest.skip("e4m3 conversions need sm_89")
    words = np.array([0x3831, 0xFFFF3831, 0x12343831], dtype=np.uint32)
    got = converted("f16_of_e4m3", words, 3, np.uint32)
    assert len(set(got.tolist())) == 1


@pytest.mark.parametrize("seed", range(3))
def test_floats_to_f16(seed: int) -> None:
    values = formats.hard_floats(formats.f16_values(), seed)
    got = converted("f16_of_floats", values, len(values) // 2, np.uint16, 2)
    assert_same(got, formats.f16_codes(values), values)


@pytest.mark.parametrize("seed", range(3))
def test_floats_to_bf16(seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**16, 2**13, dtype=np.uint16)
    grid = (codes.astype(np.uint32) << 16).view(np.float32)
    values = formats.hard_floats(grid, seed)
    got = converted("bf16_of_floats", values, len(values) // 2, np.uint16, 2)
    assert_same(got, formats.bf16_codes(values), values)


@needs_e4m3
@pytest.mark.parametrize("seed", range(3))
def test_floats_to_e4m3(seed: int) -> None:
    """The inputs include all middles between two codes, and values that saturate."""
    values = formats.hard_floats(formats.e4m3_values(), seed)
    got = converted("e4m3_of_floats", values, len(values) // 2, np.uint32)
    assert not (got >> 16).any(), "more than two codes were written"
    codes = np.stack([got & 0xFF, got >> 8], axis=1).reshape(-1)
    assert_same(codes, formats.e4m3_codes(values), values)


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_fma_of_pairs(name: str) -> None:
    """Results are exact: a · b + c of small integers."""
    rng, count = np.random.default_rng(0), 4099
    a, b, c = rng.integers(-8, 9, (3, count, 2)).astype(np.float32)
    encode = formats.bf16_codes if name == "bf16" else formats.f16_codes
    words = np.stack([formats.pairs(encode(x)) for x in (a, b, c, c)], axis=1)
    got = converted(f"fma_{name}", words, count, np.uint32)
    assert_same(got, formats.pairs(encode(a * b + c + 0.0)), got)


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_products_with_subnormal_halves(name: str) -> None:
    """e2m1 codes are subnormal in the fields of 16 bits; their products with a scale are exact."""
    encode = formats.bf16_codes if name == "bf16" else formats.f16_codes
    small, large = (2.0**-127, 2.0**118) if name == "bf16" else (2.0**-15, 2.0**7)
    codes = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32) * np.float32(small)
    scales = np.arange(1, 16, dtype=np.float32) * np.float32(large)
    a, b = (x.reshape(-1, 1).repeat(2, 1) for x in np.meshgrid(codes, scales))
    words = [formats.pairs(encode(x)) for x in (a, b, np.zeros_like(a), np.zeros_like(a))]
    got = converted(f"fma_{name}", np.stack(words, axis=1), len(a), np.uint32)
    assert_same(got, formats.pairs(encode(a * b)), got)


def test_and_xor() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, (4099, 4), dtype=np.uint32)
    got = converted("and_xor", words, 4099, np.uint32)
    assert_same(got, words[:, 0] & words[:, 1] ^ words[:, 2], words[:, 0])


@pytest.mark.parametrize("name", ["load_once", "load_shared"])
def test_16_byte_loads(name: str) -> None:
    words = np.random.default_rng(0).integers(0, 2**32, (4099, 4), dtype=np.uint32)
    got = converted(name, words, 4099, np.uint32, 4)
    assert_same(got, words.reshape(-1), words.reshape(-1))


def lanes_of(a: np.ndarray, b: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, ...]:
    """Split matrices [N, 16, 16], [N, 16, 8], [N, 16, 8] into the lanes' registers of ptx.cuh."""
    lane = np.arange(32)
    g, t = lane // 4, lane % 4 * 2

    def two(matrix: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return np.stack([matrix[:, row, column], matrix[:, row, column + 1]], axis=-1)

    of_a = [two(a, g, t), two(a, g + 8, t), two(a, g, t + 8), two(a, g + 8, t + 8)]
    down = b.swapaxes(1, 2)  # pairs of b lie in a column
    of_b = [two(down, g, t), two(down, g, t + 8)]
    of_d = [two(d, g, t), two(d, g + 8, t)]
    return tuple(np.concatenate(parts, axis=-1) for parts in (of_a, of_b, of_d))


@pytest.mark.parametrize("bf16", [0, 1])
def test_mma(bf16: int) -> None:
    """All sums of small integers are exact, so a misplaced element changes the result."""
    rng = np.random.default_rng(bf16)
    count = 64
    a, b = rng.integers(-8, 9, (count, 16, 16)), rng.integers(-8, 9, (count, 16, 8))
    d = rng.integers(-100, 101, (count, 16, 8))
    own_a, own_b, own_d = (x.astype(np.float32) for x in lanes_of(a, b, d))
    encode = formats.bf16_codes if bf16 else formats.f16_codes
    out = on_device(own_d)
    call("mma", on_device(encode(own_a)), on_device(encode(own_b)), out, count, bf16)
    got = out.cpu().numpy().view(np.float32).reshape(count, 32, 4)
    want = lanes_of(a, b, d + a @ b)[2].astype(np.float32)
    bad = np.argwhere(got != want)
    assert not len(bad), f"product, lane, element {bad[0]}: {len(bad)} of {got.size} differ"


@pytest.mark.parametrize("words", [0, 1], ids=["16 bytes", "4 bytes"])
@pytest.mark.parametrize("phases", [1, 2, 3, 4, 7, 50])
def test_cp_async_and_its_arrivals(phases: int, words: int) -> None:
    rng = np.random.default_rng(phases)
    source = rng.integers(1, 2**32, (phases, THREADS, 4), dtype=np.uint32)
    out = torch.full((source.nbytes,), 0xA5, dtype=torch.uint8).cuda()
    call("cp_async", on_device(source), out, phases, words)
    want = source.copy()
    want[1::2, ::3] = 0xA5A5A5A5
    assert_same(out.cpu().numpy().view(np.uint32), want.reshape(-1), source.reshape(-1))


@needs_bulk
@pytest.mark.parametrize("phases", [1, 2, 3, 4, 7, 50])
def test_bulk_copy_and_expected_bytes(phases: int) -> None:
    rng = np.random.default_rng(phases)
    sizes = rng.integers(0, MOST_BYTES // 16 + 1, phases).astype(np.int32) * 16
    sizes[: min(phases, 7)] = [MOST_BYTES, 0, 16, 0, 48, 8176, 32][:phases]
    source = rng.integers(1, 256, (phases, MOST_BYTES), dtype=np.uint8)
    out = torch.full((source.nbytes,), 0xA5, dtype=torch.uint8).cuda()
    call("bulk", on_device(source), out, on_device(sizes), phases)
    want = np.where(np.arange(MOST_BYTES) < sizes[:, None], source, 0xA5).astype(np.uint8)
    assert_same(out.cpu().numpy(), want.reshape(-1), source.reshape(-1))


@needs_bulk
@pytest.mark.parametrize("delay", [0, 1000, 100_000])
def test_a_wait_ends_with_its_phase_and_not_before(delay: int) -> None:
    rounds = 101
    seen = torch.full((2 * rounds,), -1, dtype=torch.int32).cuda()
    call("ping_pong", seen, rounds, delay)
    assert seen.view(rounds, 2).cpu().tolist() == [[i + 1, i + 1] for i in range(rounds)]


@pytest.mark.parametrize("dependent", [0, 1])
@pytest.mark.parametrize("delay", [0, 20_000])
def test_a_dependent_kernel_waits_for_the_one_before(dependent: int, delay: int) -> None:
    kernels = 200
    values = torch.zeros(kernels + 1, dtype=torch.int32).cuda()
    times = torch.zeros(2 * kernels, dtype=torch.int64).cuda()
    call("chain", values, times, kernels, delay, dependent)
    assert values.cpu().tolist() == list(range(kernels + 1))
    began, ended = times.view(kernels, 2).cpu().T
    early = int((began[1:] < ended[:-1]).sum())
    if not dependent:
        assert early == 0
    elif delay and arch() >= 90:
        assert early > kernels // 2, f"only {early} of {kernels} started ahead"
