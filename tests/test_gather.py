# SPDX-License-Identifier: Apache-2.0
"""gather_rows_: the rows that it writes, leaves alone, and must not read."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from backends_under_test import ALL, COMPILED, CPU, CUDA, EMULATED
from compare import assert_bitwise
from generators import (
    FLOATS,
    INT4,
    QUANTISED,
    GatherCase,
    gather_case,
    normal,
    poison,
    row_indexed,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels import gather_rows_, reference

pytestmark = pytest.mark.backends(*COMPILED)

# All legal pairs of weight and slab.
PAIRS = [(f, s) for f in FLOATS for s in (f, *QUANTISED)] + [(q, q) for q in QUANTISED]


def one_copy(
    weight_row: Tensor, slab_dtype: torch.dtype, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the expected slab row and its scale or scales, by the reference's rule for one row."""
    if slab_dtype == weight_row.dtype:
        return weight_row, scale
    if slab_dtype == INT4:
        rows, scales = reference.quantise_int4(weight_row[None])
    else:
        rows, scales = reference.quantise_rows(weight_row[None], slab_dtype)
    return rows[0], scales[0]


def check(case: GatherCase) -> None:
    got = case.copy()
    gather_rows_(**got.arguments())
    assert_bitwise(got.slab_ids, case.active_ids, "slab_ids")
    dim = case.slab.size(-1)
    before, after = (row_indexed(c.slab).reshape(-1, dim) for c in (case, got))
    held, wanted = case.slab_ids.flatten().tolist(), case.active_ids.flatten().tolist()
    for slot, (old, new) in enumerate(zip(held, wanted, strict=True)):
        scale = None if got.slab_scale is None else got.slab_scale.view(len(held), -1)[slot]
        if old == new or new < 0:  # nothing reads an emptied slot's row
            assert_bitwise(after[slot], before[slot], f"slab row {slot}, unchanged")
            if scale is not None and case.slab_scale is not None:
                old_scale = case.slab_scale.view(len(held), -1)[slot]
                assert_bitwise(scale, old_scale, f"scale {slot}, unchanged")
            continue
        row = row_indexed(case.weight)[new].view(case.weight.dtype)
        own_scale = None if case.weight_scale is None else case.weight_scale[new]
        want, want_scale = one_copy(row, case.slab.dtype, own_scale)
        assert_bitwise(after[slot], row_indexed(want), f"slab row {slot}")
        if scale is not None and want_scale is not None:
            assert_bitwise(scale, want_scale.view(-1), f"scale {slot}")
    again = got.copy()
    # The slab is up to date, so a second call reads no row.
    row_indexed(again.weight).copy_(
        row_indexed(poison(tuple(again.weight.shape), again.weight.dtype))
    )
    gather_rows_(**again.arguments())
    for one, other in ((again.slab, got.slab), (again.slab_scale, got.slab_scale)):
        if one is not None and other is not None:
            assert_bitwise(row_indexed(one), row_indexed(other), "after a second call")


@st.composite
def gather_cases(
    draw: st.DrawFn, pairs: Sequence[tuple[torch.dtype, torch.dtype]], dim: int
) -> GatherCase:
    """Draw any shape with a weight's and a slab's dtype of ``pairs`` and D at most ``dim``."""
    dtype, slab_dtype = draw(st.sampled_from(pairs))
    return gather_case(
        draw(st.integers(0, 2**20)),
        dim=draw(st.integers(1, dim)),
        vocab_size=draw(st.integers(1, 40)),
        capacity=draw(st.integers(0, 40)),
        num_groups=draw(st.sampled_from((None, 1, 3))),
        dtype=dtype,
        slab_dtype=slab_dtype,
        gap=draw(st.sampled_from((0, 1, 8))),
        same=draw(st.sampled_from((0.0, 0.5, 1.0))),
    )


@pytest.mark.backends(*ALL)
@given(case=gather_cases(PAIRS, 70))
def test_any_call(case: GatherCase) -> None:
    check(case)


@pytest.mark.parametrize(("dtype", "slab_dtype"), PAIRS, ids=str)
def test_equals_reference(dtype: torch.dtype, slab_dtype: torch.dtype, backend: str) -> None:
    """The case is large enough for several threads; the interpreter has one."""
    case = gather_case(
        1,
        dim=771,
        vocab_size=2000,
        capacity=90 if backend == "triton" else 900,
        num_groups=2,
        dtype=dtype,
        slab_dtype=slab_dtype,
    )
    for threads in (1, 2, 4) if backend == "cpu" else (1,):
        torch.set_num_threads(threads)
        got, want = case.copy(), case.copy()
        gather_rows_(**got.arguments())
        reference.gather_rows_(**want.arguments())
        assert_bitwise(row_indexed(got.slab), row_indexed(want.slab), "slab")
        assert_bitwise(got.slab_ids, want.slab_ids, "slab_ids")
        if got.slab_scale is not None and want.slab_scale is not None:
            assert_bitwise(got.slab_scale, want.slab_scale, "slab_scale")


@pytest.mark.parametrize(("dtype", "slab_dtype"), PAIRS, ids=str)
def test_nothing_beside_the_slab_is_written(dtype: torch.dtype, slab_dtype: torch.dtype) -> None:
    case = gather_case(2, dim=33, num_groups=2, dtype=dtype, slab_dtype=slab_dtype, same=0.0)
    got, around = case.copy(), {}
    for name in ("slab", "slab_ids", "slab_scale"):
        inner = getattr(case, name)
        if inner is None:
            continue
        bits = row_indexed(inner)
        outer = torch.full((inner.size(0) + 2, *inner.shape[1:]), 77).to(bits.dtype)
        outer[1:-1] = bits
        around[name] = outer.view(inner.dtype)
        object.__setattr__(got, name, around[name][1:-1])
    gather_rows_(**got.arguments())
    for name, outer in around.items():
        bits = row_indexed(outer)
        assert bool((bits[0] == 77).all() and (bits[-1] == 77).all()), f"around {name}"
    plain = case.copy()
    gather_rows_(**plain.arguments())
    assert_bitwise(row_indexed(got.slab), row_indexed(plain.slab))


@pytest.mark.parametrize("slab_dtype", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("capacity", [29, 40])
def test_many_groups(capacity: int, slab_dtype: torch.dtype) -> None:
    """CUDA deals so many slots out in eights; 29 per group leave the last eight incomplete."""
    case = gather_case(
        9, dim=3, capacity=capacity, num_groups=47, dtype=torch.float16, slab_dtype=slab_dtype
    )
    got, want = case.copy(), case.copy()
    gather_rows_(**got.arguments())
    reference.gather_rows_(**want.arguments())
    assert_bitwise(row_indexed(got.slab), row_indexed(want.slab), "slab")
    assert_bitwise(got.slab_ids, want.slab_ids, "slab_ids")


def test_an_emptied_slot_keeps_its_row_and_a_token_that_returns_is_copied_anew() -> None:
    weight = normal(torch.Generator().manual_seed(0), (4, 3), torch.float32)
    slab, held = torch.full((2, 3), 9.0), torch.tensor([-1, -1], dtype=torch.int32)
    gather_rows_(slab, held, weight, torch.tensor([2, -1], dtype=torch.int32))
    assert_bitwise(slab, torch.stack([weight[2], torch.full((3,), 9.0)]))
    gather_rows_(slab, held, weight, torch.tensor([-1, 2], dtype=torch.int32))
    assert held.tolist() == [-1, 2]
    assert_bitwise(slab, torch.stack([weight[2], weight[2]]))
    changed = weight + 1
    gather_rows_(slab, held, changed, torch.tensor([2, 2], dtype=torch.int32))
    assert_bitwise(slab, torch.stack([changed[2], weight[2]]))


def test_two_groups_hold_their_own_copy_of_a_token() -> None:
    case = gather_case(3, num_groups=3, same=0.0)
    got = case.copy()
    ids = case.active_ids[:1].expand(3, -1).contiguous()
    weight = case.weight.nan_to_num()
    gather_rows_(got.slab, got.slab_ids.fill_(-1), weight, ids)
    filled = ids[0] >= 0
    assert_bitwise(got.slab[1][filled], got.slab[0][filled])
    assert_bitwise(got.slab[2][filled], got.slab[0][filled])


@pytest.mark.backends(*CPU)
def test_weight_beyond_2_to_31_elements(tmp_path: Path) -> None:
    dim, vocab_size = 4096, 2**20 + 70_000
    flat = torch.from_file(
        str(tmp_path / "w"), shared=True, size=vocab_size * dim, dtype=torch.int8
    )
    weight = flat.view(vocab_size, dim)
    ids = torch.tensor([vocab_size - 1, 2**19 + 5, 5, 2**20 + 5], dtype=torch.int32)
    scale = torch.zeros(vocab_size)
    for value, token in enumerate(ids.tolist(), start=1):
        weight[token], scale[token] = value, value / 2
    slab, held = torch.zeros(4, dim, dtype=torch.int8), torch.full((4,), -1, dtype=torch.int32)
    slab_scale = torch.zeros(4)
    gather_rows_(slab, held, weight, ids, slab_scale=slab_scale, weight_scale=scale)
    assert_bitwise(slab, torch.arange(1, 5)[:, None].expand(4, dim).to(torch.int8).contiguous())
    assert_bitwise(slab_scale, torch.tensor([0.5, 1.0, 1.5, 2.0]))


# Rows in 16-byte chunks and not; several passes per thread; more than shared memory holds.
@pytest.mark.parametrize("dim", [4096, 4104, 4097, 12_296, 120_000])
@pytest.mark.parametrize(("dtype", "slab_dtype"), PAIRS, ids=str)
def test_long_rows(dtype: torch.dtype, slab_dtype: torch.dtype, dim: int) -> None:
    check(
        gather_case(
            5, dim=dim, vocab_size=4, capacity=4, dtype=dtype, slab_dtype=slab_dtype, same=0.2
        )
    )


def moved(table: Tensor, offset: int) -> Tensor:
    """Copy a table to memory that starts `offset` elements later."""
    flat = torch.zeros(table.numel() + offset, dtype=table.dtype)
    flat[offset:] = table.flatten()
    return flat[offset:].view(table.shape)


@pytest.mark.parametrize("offsets", [(1, 0), (0, 1), (4, 4), (2, 8)])
@pytest.mark.parametrize(("dtype", "slab_dtype"), PAIRS, ids=str)
def test_tables_that_start_anywhere(
    dtype: torch.dtype, slab_dtype: torch.dtype, offsets: tuple[int, int]
) -> None:
    """Rows are a multiple of 16 bytes, but the first row is not aligned to 16 bytes."""
    case = gather_case(6, dim=64, dtype=dtype, slab_dtype=slab_dtype, same=0.2)

    object.__setattr__(case, "weight", moved(case.weight, offsets[0]))
    got, want = case.copy(), case.copy()
    object.__setattr__(got, "slab", moved(case.slab, offsets[1]))
    gather_rows_(**got.arguments())
    reference.gather_rows_(**want.arguments())
    assert_bitwise(row_indexed(got.slab), row_indexed(want.slab), "slab")
    assert_bitwise(got.slab_ids, want.slab_ids, "slab_ids")


@pytest.mark.backends(*EMULATED, *CUDA)
@pytest.mark.parametrize(("dtype", "slab_dtype"), PAIRS, ids=str)
def test_ids_out_of_range_are_empty_slots_on_cuda(
    dtype: torch.dtype, slab_dtype: torch.dtype
) -> None:
    """They are empty in slab_ids too, so a head needs no V to read the slab.

    No row is read for them.
    """
    case = gather_case(7, num_groups=2, dtype=dtype, slab_dtype=slab_dtype, same=0.3)
    rng, size = torch.Generator().manual_seed(8), case.weight.size(0)
    strange = torch.tensor([size, size + 1, 2**31 - 1, -2, -(2**31)], dtype=torch.int32)
    where = torch.rand(case.active_ids.shape, generator=rng) < 0.3
    drawn = strange[torch.randint(0, len(strange), where.shape, generator=rng)]
    ids = torch.where(where, drawn, case.active_ids)
    got, want = case.copy(), case.copy()
    gather_rows_(**{**got.arguments(), "active_ids": ids})
    clean = ids.masked_fill(where, -1)
    reference.gather_rows_(**{**want.arguments(), "active_ids": clean})
    assert_bitwise(got.slab_ids, clean, "slab_ids")
    assert_bitwise(row_indexed(got.slab), row_indexed(want.slab), "slab")
    if got.slab_scale is not None and want.slab_scale is not None:
        assert_bitwise(got.slab_scale, want.slab_scale, "slab_scale")
