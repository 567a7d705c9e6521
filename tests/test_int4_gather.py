# SPDX-License-Identifier: Apache-2.0
"""gather_rows_ into slabs of 4-bit rows: bit for bit the reference's, within half a step."""

import math

import pytest
import torch
from backends_under_test import ALL, without_misread
from compare import assert_bitwise, assert_close, int4_columns
from generators import FLOATS, INT4, GatherCase, gather_case, normal
from hypothesis import given
from hypothesis import strategies as st
from test_gather import check, gather_cases, moved
from torch import Tensor

from microspec_kernels import ActiveVocab, WeightSlab, gather_rows_, reference, sparse_logits
from microspec_kernels._checks import INT4_GROUP

pytestmark = pytest.mark.backends(*ALL)

SOURCES = (*FLOATS, INT4)


@pytest.mark.slow
@given(case=gather_cases([(source, INT4) for source in SOURCES], 300))
def test_any_call(case: GatherCase) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [32, 288, 4096, 12_320, 65_536])
@pytest.mark.parametrize("dtype", SOURCES, ids=str)
def test_long_rows(dtype: torch.dtype, dim: int) -> None:
    check(gather_case(5, dim=dim, vocab_size=4, capacity=4, dtype=dtype, slab_dtype=INT4, same=0.2))


@pytest.mark.slow
@pytest.mark.parametrize("offset", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", SOURCES, ids=str)
def test_tables_that_start_anywhere(dtype: torch.dtype, offset: int) -> None:
    case = gather_case(6, dim=64, dtype=dtype, slab_dtype=INT4, same=0.2)

    got, want = case.copy(), case.copy()
    for name in ("slab", "weight", "slab_scale"):
        object.__setattr__(got, name, moved(getattr(case, name), offset))
    gather_rows_(**got.arguments())
    reference.gather_rows_(**want.arguments())
    assert_bitwise(got.slab, want.slab, "slab")
    assert_bitwise(got.slab_ids, want.slab_ids, "slab_ids")
    assert got.slab_scale is not None and want.slab_scale is not None
    assert_bitwise(got.slab_scale, want.slab_scale, "slab_scale")


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise all rows of weight with the op; return codes int64 [N, D] and scale."""
    count, dim = weight.shape
    slab = torch.full((count, dim // 2), 99, dtype=INT4)
    scale = torch.full((count, dim // INT4_GROUP), 99.0).bfloat16()
    held = torch.full((count,), -1, dtype=torch.int32)
    gather_rows_(slab, held, weight, torch.arange(count, dtype=torch.int32), slab_scale=scale)
    want, want_scale = reference.quantise_int4(weight)
    assert_bitwise(scale, want_scale, "scale")
    assert_bitwise(slab, want, "codes")
    return int4_columns(slab), scale


@pytest.mark.slow
@pytest.mark.parametrize("source", FLOATS, ids=str)
@given(seed=st.integers(0, 9999), groups=st.integers(1, 9), exponent=st.integers(-45, 38))
def test_within_half_a_step(
    source: torch.dtype, seed: int, groups: int, exponent: int, backend: str
) -> None:
    rng = torch.Generator().manual_seed(seed)
    weight = normal(rng, (4, INT4_GROUP * groups), torch.float32).double() * 10.0**exponent
    weight = without_misread(weight.to(source).nan_to_num(posinf=1.0, neginf=-1.0), backend)
    codes, scale = quantised(weight)
    steps = weight.double() / scale.double().repeat_interleave(INT4_GROUP, 1)
    error = (codes.double() - steps).abs()
    assert bool((error <= 0.5 + 2.0**-8).all())  # the scale's rounding moves 7 by 7 * 2^-9
    assert bool((codes.abs() <= 7).all())
    largest = codes.abs().unflatten(1, (-1, INT4_GROUP)).amax(-1)
    normal_groups = weight.float().abs().unflatten(1, (-1, INT4_GROUP)).amax(-1) / 7 >= 2.0**-126
    assert bool((largest[normal_groups] == 7).all()), "the largest column uses the range"


def test_special_groups() -> None:
    tiny = torch.finfo(torch.float32).tiny
    groups = {
        "zeros": [0.0, -0.0],
        "one nan": [1.0, math.nan, -2.0],
        "one inf": [1.0, math.inf, -2.0],
        "minus inf": [-math.inf, 1.0],
        "subnormal": [2.0**-149, -(2.0**-149)],
        "amax whose scale is subnormal": [tiny * 6, -tiny],
        "amax whose scale is the smallest normal": [tiny * 7, tiny, -tiny],
        "huge": [3.4028234e38, -3.4028234e38, 1e38],
        "nan last": [0.0] * 31 + [math.nan],
        "ordinary": [7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.25, -6.5],
        "scale rounded up": [7 * (1 + 2.0**-8 + 2.0**-9), -7.0],
    }
    row = torch.tensor([[*values, *[0.0] * (32 - len(values))] for values in groups.values()])
    codes, scale = quantised(row.flatten()[None])
    result = dict(
        zip(groups, zip(codes.view(-1, 32).tolist(), scale[0].tolist(), strict=True), strict=True)
    )
    for name in ("zeros", "subnormal", "amax whose scale is subnormal"):
        assert result[name] == ([0] * 32, 1.0), name
    assert result["amax whose scale is the smallest normal"] == ([7, 1, -1, *[0] * 29], tiny)
    for name in ("one nan", "one inf", "minus inf", "nan last"):
        assert result[name][0] == [0] * 32, name
        assert math.isnan(result[name][1]), name
    assert result["huge"][0][:3] == [7, -7, 2]
    # Half to even.
    assert result["ordinary"] == ([7, 0, 2, 2, 0, -2, -2, 3, -6, *[0] * 23], 1.0)
    assert result["scale rounded up"] == ([7, -7, *[0] * 30], 1 + 2.0**-7)


@pytest.mark.slow
def test_a_slab_serves_the_head() -> None:
    """The head over the slab equals float64 over the reference's dequantised rows."""
    rng = torch.Generator().manual_seed(3)
    weight = normal(rng, (60, 96), torch.bfloat16)
    vocab = ActiveVocab(60, 20, frequent_tokens=torch.arange(0, 60, 2), device="cpu")
    slab = WeightSlab(weight, vocab, dtype="int4", buffers=2)
    hidden = normal(rng, (5, 96), torch.bfloat16)
    for step in range(3):
        vocab.update(torch.randint(0, 60, (1, 7), generator=rng))
        slab.refresh()
        view = slab.front()
        assert view.rows.shape == (2, 20, 48) and view.rows.dtype == INT4
        assert view.scale is not None and view.scale.shape == (2, 20, 3)
        z = sparse_logits(
            hidden, view.rows, view.ids, packed=True, weight_scale=view.scale,
            group_ids=view.group_ids.repeat(5),
        )  # fmt: skip
        codes, scale = reference.quantise_int4(weight[vocab.ids[0].long()])
        want = hidden.double() @ reference.dequantise_rows(codes, scale, torch.float64).T
        assert_close(z, want, 2e-5, f"step {step}")
    assert slab.scale is not None
    few = ActiveVocab(20, 5, frequent_tokens=torch.arange(5), device="cpu")
    copy = WeightSlab(slab.rows[0], few, weight_scale=slab.scale[0], buffers=1)
    copy.refresh()
    assert copy.scale is not None
    assert_bitwise(copy.rows[0], slab.rows[0, :5], "rows of 4 bits are copied")
    assert_bitwise(copy.scale[0], slab.scale[0, :5], "with their scales")
