# SPDX-License-Identifier: Apache-2.0
"""The memory that the head reads: no poison (see generators), any stride, past 2^31 elements."""

from pathlib import Path

import pytest
import torch
from backends_under_test import ALL, COMPILED, CPU, slow_interpreted
from compare import assert_bitwise
from generators import FLOATS, QUANTISED, HeadCase, head_case, poison, row_indexed
from torch import Tensor

from microspec_kernels import sparse_head, sparse_logits

pytestmark = pytest.mark.backends(*COMPILED)


def bitwise_equal_calls(one: HeadCase, other: HeadCase, k: int = 9) -> None:
    for got, want in zip(
        sparse_head(*one.tensors(), k, **one.options()),
        sparse_head(*other.tensors(), k, **other.options()),
        strict=True,
    ):
        assert_bitwise(got, want)
    logits = sparse_logits(*one.tensors(), **one.options())
    assert_bitwise(logits, sparse_logits(*other.tensors(), **other.options()))
    assert not logits.isnan().any(), "poison was read"


@pytest.mark.parametrize("gap", [slow_interpreted(1), 7, slow_interpreted(8)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("weight_dtype", [None, *QUANTISED], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_strides(
    dtype: torch.dtype, weight_dtype: torch.dtype | None, packed: bool, gap: int
) -> None:
    options = {"m": 7, "dim": 45, "num_groups": 2, "padding": True, "packed": packed}
    tight = head_case(11, dtype=dtype, weight_dtype=weight_dtype, **options)
    loose = head_case(11, dtype=dtype, weight_dtype=weight_dtype, gap=gap, **options)
    assert loose.weight.stride(-2) == 45 + gap
    bitwise_equal_calls(loose, tight)


@pytest.mark.backends(*ALL)
def test_groups_of_a_slab_may_lie_apart_and_rows_repeat() -> None:
    case = head_case(12, m=4, num_groups=3, packed=True)
    apart = torch.full((3, 2, 20, 24), float("nan"))
    apart[:, 1] = case.weight
    bitwise_equal_calls(case.changed(weight=apart[:, 1]), case)
    # The same row for all: stride 0.
    row = case.hidden[:1].expand(4, -1)
    bitwise_equal_calls(case.changed(hidden=row), case.changed(hidden=row.contiguous()))
    one = case.weight[:, 3:4].nan_to_num().expand(-1, 20, -1)
    bitwise_equal_calls(case.changed(weight=one), case.changed(weight=one.contiguous()))


def test_a_view_into_the_middle() -> None:
    """Storage offsets count, and the head reads nothing before or behind the view."""
    case = head_case(13, m=3, dim=31, dtype=torch.bfloat16)
    hidden, weight = poison((5, 31), torch.bfloat16), poison((52, 31), torch.bfloat16)
    hidden[1:4], weight[1:51] = case.hidden, case.weight
    bitwise_equal_calls(case.changed(hidden=hidden[1:4], weight=weight[1:51]), case)


def test_groups_without_rows_are_not_read() -> None:
    case = head_case(14, m=3, num_groups=3, packed=True)
    groups = torch.tensor([0, 2, 2])
    weight = case.weight.clone()
    weight[1] = float("nan")
    bitwise_equal_calls(
        case.changed(weight=weight, group_ids=groups), case.changed(group_ids=groups)
    )


@pytest.mark.backends(*ALL)
@pytest.mark.parametrize("weight_dtype", [None, *QUANTISED], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_packed_equals_indexed(dtype: torch.dtype, weight_dtype: torch.dtype | None) -> None:
    options = {
        "m": 9,
        "dim": 37,
        "num_groups": 2,
        "bias": dtype,
        "logit_scale": 0.7,
        "softcap": 20.0,
    }
    indexed = head_case(15, dtype=dtype, weight_dtype=weight_dtype, **options)
    packed = head_case(15, dtype=dtype, weight_dtype=weight_dtype, packed=True, **options)
    bitwise_equal_calls(packed, indexed)


def lazy(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Make zeros of any size in a sparse file, whose pages exist only after a write."""
    flat = torch.from_file(str(path), shared=True, size=torch.Size(shape).numel(), dtype=dtype)
    return flat.view(shape)


def written_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.backends(*CPU)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_weight_beyond_2_to_31_elements(dtype: torch.dtype, tmp_path: Path) -> None:
    """Rows lie past 2^31 and 2^32 elements; a truncated offset finds zeros, or another row."""
    dim, vocab_size = 4096, 2**20 + 70_000
    weight = lazy(tmp_path / "weight", (vocab_size, dim), dtype)
    quantised = dtype == torch.int8
    ids = [vocab_size - 1, 2**19 + 5, -1, 2**20 + 5, 3, 5, 2**19 - 1]
    tokens = torch.tensor([t for t in ids if t >= 0])
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(-3, 4, (len(tokens), dim), generator=rng).to(dtype)
    row_indexed(weight)[tokens] = row_indexed(rows)
    hidden = torch.randint(-3, 4, (2, dim), generator=rng).to(torch.bfloat16)
    scale = lazy(tmp_path / "scale", (vocab_size,), torch.float32) if quantised else None
    if scale is not None:
        scale[tokens] = 0.5
    bias = lazy(tmp_path / "bias", (vocab_size,), torch.float32)
    bias[tokens] = torch.arange(len(tokens)).float()
    active = torch.tensor(ids, dtype=torch.int32)
    z = sparse_logits(hidden, weight, active, weight_scale=scale, bias=bias)
    want = hidden.double() @ rows.double().T * (0.5 if quantised else 1) + bias[tokens].double()
    assert_bitwise(z[:, active >= 0], want.float())
    _, top, _ = sparse_head(hidden, weight, active, 6, weight_scale=scale, bias=bias)
    assert_bitwise(top, tokens[want.argsort(descending=True, stable=True)])
    assert written_bytes(tmp_path / "weight") < 2**20  # nothing was written into it


@pytest.mark.backends(*CPU)
def test_slab_beyond_2_to_31_elements(tmp_path: Path) -> None:
    dim, capacity = 4096, 300_000
    slab = lazy(tmp_path / "slab", (2, capacity, dim), torch.int8)
    ids = torch.full((2, capacity), -1, dtype=torch.int32)
    scale = torch.full((2, capacity), float("nan"))
    slots = [(0, 0), (0, capacity - 1), (1, 0), (1, 2**19 - capacity + 9), (1, capacity - 1)]
    for value, (group, slot) in enumerate(slots, start=1):
        slab[group, slot] = value
        ids[group, slot], scale[group, slot] = 10 * value, 1.0
    hidden = torch.ones(2, dim)
    logits, top, _ = sparse_head(
        hidden, slab, ids, 3, packed=True, group_ids=torch.tensor([1, 0]), weight_scale=scale
    )
    assert top.tolist() == [[50, 40, 30], [20, 10, -1]]
    assert logits[0].tolist() == [5.0 * dim, 4.0 * dim, 3.0 * dim]
