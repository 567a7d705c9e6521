# SPDX-License-Identifier: Apache-2.0
"""sparse_head and sparse_logits over rows of 4 bits, against float64 of the dequantised rows."""

import math
from pathlib import Path

import pytest
import torch
from backends_under_test import ALL, CPU, CUDA, EMULATED, SMALL, TRITON
from compare import assert_bitwise, assert_close, int4_columns
from generators import FLOATS, INT4, head_case, int4_rows
from test_head_values import check_against_float64

from microspec_kernels import reference, sparse_head, sparse_logits
from microspec_kernels._checks import INT4_GROUP

pytestmark = pytest.mark.backends(*ALL)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [32, 64, 96, 128, 160, 224, 256, 288, 512, 2880, 4096])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("m", [1, 3, 10])
def test_dims(dtype: torch.dtype, dim: int, m: int) -> None:
    """Whole blocks of every width, and remainders of one to seven groups."""
    check_against_float64(
        head_case(dim, m=m, dim=dim, capacity=37, dtype=dtype, weight_dtype=INT4, packed=m == 3),
        k=10,
    )


@pytest.mark.parametrize("dim", [96, 128])  # tensor cores take multiples of 64
def test_every_code_in_every_column(dim: int) -> None:
    """The even column of a byte is its low half; codes are two's complement."""
    codes = (torch.arange(16)[:, None] + torch.arange(dim)) % 16 - 8
    rows, ids = int4_rows(codes), torch.arange(16, dtype=torch.int32)
    assert_bitwise(int4_columns(rows), codes)
    assert_bitwise(reference.int4_columns(rows), codes.to(torch.int8))
    assert int4_rows(torch.tensor([[3, -2]])).tolist() == [[0xE3]]
    scale = 2.0 ** torch.tensor([3.0, -2.0, 9.0, -5.0][: dim // 32]).expand(16, -1)
    wanted = codes * scale.repeat_interleave(INT4_GROUP, 1)
    for dtype in FLOATS:
        z = sparse_logits(
            torch.eye(dim, dtype=dtype), rows, ids, weight_scale=scale.bfloat16().contiguous()
        )
        assert_bitwise(z + 0.0, wanted.T.contiguous() + 0.0)


@pytest.mark.slow
@pytest.mark.backends(*ALL, *SMALL)
@pytest.mark.parametrize(
    ("m", "dim"), [(10, 4160), (20, 2112), (40, 1088), (40, 4160), (5, 2880), (60, 576), (3, 64)]
)
def test_tiles_and_splits_of_tensor_cores(m: int, dim: int) -> None:
    """Hidden exceeds a block's registers, or the last warps have fewer columns, or none."""
    case = head_case(
        dim, m=m, dim=dim, capacity=19, dtype=torch.bfloat16, weight_dtype=INT4, packed=m < 10
    )
    check_against_float64(case, k=4)


@pytest.mark.slow
@pytest.mark.backends(*ALL, *SMALL)
@pytest.mark.parametrize("active", [200, 90, 3])
def test_more_slots_than_the_ring_holds(active: int) -> None:
    """Each place in shared memory is filled several times; some runs have no row."""
    case = head_case(
        active, m=6, dim=1024, vocab_size=300, capacity=200, active=active, dtype=torch.float16,
        weight_dtype=INT4,
    )  # fmt: skip
    check_against_float64(case, k=10)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [128, 256])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_each_column_and_group_counts(dtype: torch.dtype, dim: int) -> None:
    """One row of hidden for each column, one slot for each group: a single term is left."""
    groups = dim // INT4_GROUP
    codes = torch.arange(dim) % 7 + 1
    rows, ids = int4_rows(codes.expand(groups, dim)), torch.arange(groups, dtype=torch.int32)
    scale = torch.diag(2.0 ** torch.arange(groups)).bfloat16()
    for first in range(0, dim, 60):  # tiles of 64 rows
        hidden = torch.eye(dim, dtype=dtype)[first : first + 60]
        z = sparse_logits(hidden, rows, ids, weight_scale=scale)
        wanted = codes[:, None] * scale.float().repeat_interleave(INT4_GROUP, 1).T
        assert_bitwise(z, wanted[first : first + 60].contiguous())


@pytest.mark.slow
def test_scales_that_are_not_aligned_to_pairs() -> None:
    """A view that begins at an odd scale."""
    case = head_case(6, m=12, dim=192, dtype=torch.bfloat16, weight_dtype=INT4)
    assert case.weight_scale is not None
    memory = torch.full((case.weight_scale.numel() + 1,), math.nan).bfloat16()
    memory[1:] = case.weight_scale.flatten()
    check_against_float64(case.changed(weight_scale=memory[1:].view_as(case.weight_scale)), k=5)


@pytest.mark.slow
@pytest.mark.backends(*CPU, *(() if TRITON else EMULATED), *CUDA)
@pytest.mark.parametrize("m", [2, 12, 40])
def test_a_row_does_not_know_the_other_rows(m: int) -> None:
    case = head_case(4, m=m, dim=448, capacity=53, dtype=torch.bfloat16, weight_dtype=INT4)
    want = sparse_logits(*case.tensors(), **case.options())
    assert_bitwise(sparse_logits(*case.tensors(), **case.options()), want)
    for row in (0, m // 2, m - 1):
        hidden = torch.full_like(case.hidden, math.nan)
        hidden[row] = case.hidden[row]
        alone = case.changed(hidden=hidden)
        got = sparse_logits(*alone.tensors(), **alone.options())
        assert_bitwise(got[row], want[row])


@pytest.mark.slow
@pytest.mark.backends(*CPU)
def test_rows_past_2_to_31_bytes(tmp_path: Path) -> None:
    """Rows, and columns, whose offsets do not fit 32 bits; 2^20 + 70000 rows of 4096 columns."""
    dim, vocab_size = 4096, 2**20 + 70_000
    flat = torch.from_file(
        str(tmp_path / "w"), shared=True, size=vocab_size * dim // 2, dtype=torch.uint8
    )
    scales = torch.from_file(
        str(tmp_path / "s"), shared=True, size=vocab_size * dim // INT4_GROUP, dtype=torch.bfloat16
    )
    weight, scale = flat.view(vocab_size, -1), scales.view(vocab_size, -1)
    ids = torch.tensor([vocab_size - 1, 5, 2**20 + 5, 2**19 + 5], dtype=torch.int32)
    for value, token in enumerate(ids.tolist(), start=1):
        weight[token], scale[token] = value, value
    hidden = torch.ones(2, dim, dtype=torch.bfloat16)
    logits, token_ids, _ = sparse_head(hidden, weight, ids, 4, weight_scale=scale)
    assert_bitwise(token_ids[0], ids.long().flip(0))
    # Half of the columns are `value`, the others 0; the scale is `value` too.
    assert_close(logits, torch.tensor([[16.0, 9.0, 4.0, 1.0]]).expand(2, 4) * dim / 2, 0.0)


@pytest.mark.slow
@pytest.mark.backends(*CPU, "reference")
def test_a_dimension_that_is_no_multiple_of_a_group_is_refused() -> None:
    for dim in (16, 48, 100):
        weight, ids = torch.zeros(4, dim // 2, dtype=INT4), torch.arange(4, dtype=torch.int32)
        scale = torch.ones(4, dim // INT4_GROUP, dtype=torch.bfloat16)
        message = f"weight: expected D a multiple of 32 for uint8 rows, got {dim}"
        with pytest.raises(ValueError, match=message):
            sparse_logits(torch.ones(1, dim), weight, ids, weight_scale=scale)
