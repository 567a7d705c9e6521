# SPDX-License-Identifier: Apache-2.0
"""gather_rows_ copies nvfp4's rows with their scales, and quantises neither to nor from them."""

import pytest
import torch
from backends_under_test import ALL
from compare import assert_bitwise
from generators import E2M1, FLOATS, INT4, GatherCase, gather_case, normal, row_indexed
from hypothesis import given
from test_gather import check, gather_cases, moved

from microspec_kernels import ActiveVocab, WeightSlab, gather_rows_, reference

pytestmark = pytest.mark.backends(*ALL)


@pytest.mark.slow
@given(case=gather_cases([(E2M1, E2M1)], 300))
def test_any_call(case: GatherCase) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [16, 272, 4096, 12_304, 65_536])
def test_long_rows(dim: int) -> None:
    check(gather_case(5, dim=dim, vocab_size=4, capacity=4, dtype=E2M1, same=0.2))


@pytest.mark.slow
@pytest.mark.parametrize("offset", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [64, 80])
def test_tables_that_start_anywhere(dim: int, offset: int) -> None:
    case = gather_case(6, dim=dim, dtype=E2M1, same=0.2)
    got, want = case.copy(), case.copy()
    for name in ("slab", "weight", "slab_scale", "weight_scale"):
        object.__setattr__(got, name, moved(getattr(case, name), offset))
    gather_rows_(**got.arguments())
    reference.gather_rows_(**want.arguments())
    assert got.slab_scale is not None and want.slab_scale is not None
    assert_bitwise(row_indexed(got.slab), row_indexed(want.slab), "slab")
    assert_bitwise(got.slab_ids, want.slab_ids, "slab_ids")
    assert_bitwise(got.slab_scale, want.slab_scale, "slab_scale")


def test_every_byte_and_every_scale_is_copied() -> None:
    """Bits, not numbers: NaN and subnormal scales, and codes of minus zero."""
    weight = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(E2M1)
    scale = torch.arange(96, dtype=torch.uint8).view(3, 32) * 3
    slab, slab_scale = torch.zeros(2, 256, dtype=E2M1), torch.zeros(2, 32, dtype=torch.uint8)
    ids = torch.tensor([2, 1], dtype=torch.int32)
    gather_rows_(
        slab, torch.full_like(ids, -1), weight, ids,
        slab_scale=slab_scale.view(torch.float8_e4m3fn),
        weight_scale=scale.view(torch.float8_e4m3fn),
    )  # fmt: skip
    assert_bitwise(row_indexed(slab), row_indexed(weight)[[2, 1]])
    assert_bitwise(slab_scale, scale[[2, 1]])


@pytest.mark.backends("cpu", "reference")
@pytest.mark.parametrize("source", [*FLOATS, INT4], ids=str)
def test_nothing_is_quantised_to_e2m1(source: torch.dtype) -> None:
    case = gather_case(0, dim=32, dtype=source)
    vocab = ActiveVocab(50, 5, frequent_tokens=torch.arange(5), device="cpu")
    slab = WeightSlab(case.weight, vocab, dtype=E2M1, weight_scale=case.weight_scale)
    with pytest.raises(TypeError, match=r"slab: expected .*, got float4_e2m1fn_x2"):
        slab.refresh()


@pytest.mark.backends("cpu", "reference")
@pytest.mark.parametrize("target", [torch.int8, torch.float8_e4m3fn, "int4"], ids=str)
def test_nothing_is_quantised_from_e2m1(target: torch.dtype) -> None:
    case = gather_case(0, dim=32, dtype=E2M1)
    vocab = ActiveVocab(50, 5, frequent_tokens=torch.arange(5), device="cpu")
    slab = WeightSlab(case.weight, vocab, dtype=target, weight_scale=case.weight_scale)
    with pytest.raises(TypeError, match="slab: expected float4_e2m1fn_x2, got"):
        slab.refresh()


@pytest.mark.slow
def test_a_slab_follows_its_vocabulary() -> None:
    rng = torch.Generator().manual_seed(3)
    weight = normal(rng, (60, 40), E2M1)
    scale = normal(rng, (60, 5), torch.float32).to(torch.float8_e4m3fn)
    vocab = ActiveVocab(60, 20, frequent_tokens=torch.arange(0, 60, 2), device="cpu")
    slab = WeightSlab(weight, vocab, buffers=2, weight_scale=scale)
    for _ in range(3):
        vocab.update(torch.randint(0, 60, (1, 7), generator=rng))
        slab.refresh()
        view = slab.front()
        assert view.rows.shape == (2, 20, 40) and view.rows.dtype == E2M1
        assert view.scale is not None and view.scale.shape == (2, 20, 5)
        front, tokens = int(view.group_ids), vocab.ids[0].long()
        assert_bitwise(row_indexed(view.rows)[front], row_indexed(weight)[tokens])
        assert_bitwise(row_indexed(view.scale)[front], row_indexed(scale)[tokens])
