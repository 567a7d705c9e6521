# SPDX-License-Identifier: Apache-2.0
"""Rows that a gather quantises: bit for bit the reference's, and within half a step."""

import math

import pytest
import torch
from backends_under_test import COMPILED, without_misread
from compare import assert_bitwise, assert_close
from generators import FLOATS, QUANTISED, normal, row_indexed
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels import gather_rows_, reference, sparse_logits

pytestmark = pytest.mark.backends(*COMPILED)

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def quantised(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise all rows of weight with the op."""
    count = weight.size(0)
    slab = torch.zeros(weight.shape, dtype=dtype)
    held, scale = torch.full((count,), -1, dtype=torch.int32), torch.zeros(count)
    gather_rows_(slab, held, weight, torch.arange(count, dtype=torch.int32), slab_scale=scale)
    return slab, scale


def check(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    slab, scale = quantised(weight, dtype)
    want, want_scale = reference.quantise_rows(weight, dtype)
    assert_bitwise(scale, want_scale, "scale")
    assert_bitwise(row_indexed(slab), row_indexed(want), "q")
    return slab, scale


@pytest.mark.parametrize("dtype", QUANTISED, ids=str)
@pytest.mark.parametrize("source", FLOATS, ids=str)
@given(seed=st.integers(0, 9999), dim=st.integers(1, 80), exponent=st.integers(-45, 38))
def test_within_half_a_step(
    dtype: torch.dtype, source: torch.dtype, seed: int, dim: int, exponent: int, backend: str
) -> None:
    rng = torch.Generator().manual_seed(seed)
    weight = (normal(rng, (4, dim), torch.float32).double() * 10.0**exponent).to(source)
    weight = without_misread(weight.nan_to_num(posinf=1.0, neginf=-1.0), backend)
    slab, scale = check(weight, dtype)
    steps = weight.double() / scale.double()[:, None]
    # int8 codes are 1 apart. e4m3 codes are 2^-3 of the power of two below apart, at least 2^-9.
    # The roundings of the scale and of the quotient add 2 * 2^-24 of the value (at most 448, in
    # steps).
    if dtype == torch.int8:
        half = torch.full_like(steps, 0.5)
    else:
        half = 2.0 ** (steps.abs().clamp(min=2.0**-6).log2().floor() - 4)
    error = (slab.double() - steps).abs()
    assert bool((error <= half + 2.0**-23 * LARGEST[dtype]).all())
    normal_rows = weight.float().abs().amax(1) / LARGEST[dtype] >= torch.finfo(torch.float32).tiny
    top = slab.float().abs().amax(1)
    assert bool((top[normal_rows] == LARGEST[dtype]).all()), "the largest element uses the range"


@pytest.mark.parametrize("dtype", QUANTISED, ids=str)
def test_special_rows(dtype: torch.dtype) -> None:
    tiny, smallest = torch.finfo(torch.float32).tiny, 2.0**-149
    rows = {
        "zeros": [0.0, -0.0, 0.0],
        "one nan": [1.0, math.nan, -2.0],
        "one inf": [1.0, math.inf, -2.0],
        "minus inf": [-math.inf, 1.0, 1.0],
        "subnormal": [smallest, -smallest, 0.0],
        "amax whose scale is subnormal": [tiny * 100, -tiny, tiny],
        "amax whose scale is the smallest normal": [tiny * LARGEST[dtype], tiny, -tiny],
        "huge": [3.4028234e38, -3.4028234e38, 1e38],
        "nan last": [0.0, 0.0, math.nan],
    }
    slab, scale = check(torch.tensor(list(rows.values())), dtype)
    result = dict(zip(rows, zip(slab.float().tolist(), scale.tolist(), strict=True), strict=True))
    assert result["zeros"] == ([0.0, 0.0, 0.0], 1.0)
    assert result["subnormal"] == ([0.0, 0.0, 0.0], 1.0)
    assert result["amax whose scale is subnormal"][1] == 1.0
    assert result["amax whose scale is the smallest normal"][1] == tiny
    for name in ("one nan", "one inf", "minus inf", "nan last"):
        assert result[name][0] == [0.0, 0.0, 0.0], name
        assert math.isnan(result[name][1]), name
    assert result["huge"][0][:2] == [LARGEST[dtype], -LARGEST[dtype]]


@pytest.mark.parametrize("source", FLOATS, ids=str)
def test_int8_rounds_half_to_even(source: torch.dtype) -> None:
    row = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.25, -126.5]]).to(source)
    slab, scale = check(row, torch.int8)
    assert scale.item() == 1.0
    assert slab.tolist() == [[127, 0, 2, 2, 0, -2, -2, 3, -126]]


@pytest.mark.parametrize("dtype", QUANTISED, ids=str)
def test_every_half_precision_value(dtype: torch.dtype) -> None:
    """Test all bf16 and fp16 numbers up to an amax that makes the scale 1."""
    for source in (torch.bfloat16, torch.float16):
        values = torch.arange(65536).to(torch.int16).view(source)
        values = values[values.float().abs() <= LARGEST[dtype]]
        assert LARGEST[dtype] in values
        slab, scale = check(values[None], dtype)
        assert scale.item() == 1
        if dtype == torch.float8_e4m3fn:
            assert_bitwise(row_indexed(slab[0]), row_indexed(values.float().to(dtype)))


@pytest.mark.parametrize("dtype", QUANTISED, ids=str)
def test_a_row_with_nan_has_nan_logits(dtype: torch.dtype) -> None:
    weight = torch.ones(3, 4)
    weight[1, 2] = math.nan
    slab, scale = quantised(weight, dtype)
    ids = torch.arange(3, dtype=torch.int32)
    z = sparse_logits(torch.ones(1, 4), slab, ids, packed=True, weight_scale=scale)
    assert z.isnan().tolist() == [[False, True, False]]
    assert_close(z[:, [0, 2]], torch.full((1, 2), 4.0), 1e-6)
