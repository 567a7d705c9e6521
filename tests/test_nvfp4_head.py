# SPDX-License-Identifier: Apache-2.0
"""sparse_head and sparse_logits over nvfp4's rows, against float64 of the dequantised rows."""

import pytest
import torch
from backends_under_test import ALL, CPU
from compare import assert_bitwise, assert_close, e2m1_columns
from generators import E2M1, FLOATS, e2m1_rows, head_case, row_indexed
from test_gather import moved
from test_head_values import check_against_float64
from torch import Tensor

from microspec_kernels import ActiveVocab, SparseHead, reference, sparse_logits
from microspec_kernels._checks import E2M1_GROUP

pytestmark = pytest.mark.backends(*ALL)

VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


@pytest.mark.slow
@pytest.mark.parametrize("dim", [16, 32, 48, 112, 128, 144, 240, 256, 272, 512, 2896, 4096])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("m", [1, 3, 10])
def test_dims(dtype: torch.dtype, dim: int, m: int) -> None:
    """Whole blocks of every width, and remainders of one to fifteen groups."""
    check_against_float64(
        head_case(dim, m=m, dim=dim, capacity=37, dtype=dtype, weight_dtype=E2M1, packed=m == 3),
        k=10,
    )


@pytest.mark.slow
def test_the_largest_capacity() -> None:
    check_against_float64(
        head_case(
            4, m=2, dim=16, vocab_size=40_000, capacity=32_768, dtype=torch.bfloat16,
            weight_dtype=E2M1,
        ),
        k=5,
    )  # fmt: skip


@pytest.mark.parametrize("dim", [96, 128])
def test_every_code_in_every_column(dim: int) -> None:
    """The even column of a byte is its low half; a code's highest bit is its sign."""
    codes = (torch.arange(16)[:, None] + torch.arange(dim)) % 16
    rows, ids = e2m1_rows(codes), torch.arange(16, dtype=torch.int32)
    columns = torch.tensor([*VALUES, *(-value for value in VALUES)])[codes]
    assert_bitwise(e2m1_columns(rows), columns)
    assert_bitwise(reference.e2m1_columns(rows), columns)
    assert e2m1_rows(torch.tensor([[5, 14]])).view(torch.uint8).tolist() == [[0xE5]]
    powers = torch.tensor([3.0, -2.0, 8.0, -9.0, 0.0, -6.0, 1.0, -8.0])
    scale = 2.0 ** powers[: dim // E2M1_GROUP].expand(16, -1)
    wanted = columns * scale.repeat_interleave(E2M1_GROUP, 1)
    for dtype in FLOATS:
        z = sparse_logits(
            torch.eye(dim, dtype=dtype), rows, ids, weight_scale=scale.to(torch.float8_e4m3fn)
        )
        assert_bitwise(z + 0.0, wanted.T.contiguous() + 0.0)


def every_scale() -> Tensor:
    """Return all values of e4m3, [256]: subnormal, negative, zero and NaN ones among them."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)


@pytest.mark.parametrize("group", [0, 3])
@pytest.mark.parametrize("dim", [64, 80])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_scale(dtype: torch.dtype, group: int, dim: int) -> None:
    """A row's scale of one group is one of the 256; 80 columns end in a shorter block."""
    scale = torch.ones(256, dim // E2M1_GROUP).to(torch.float8_e4m3fn)
    row_indexed(scale)[:, group] = row_indexed(every_scale())
    codes = torch.full((256, dim), 3)
    hidden = torch.zeros(2, dim, dtype=dtype)
    factors = torch.tensor([[1.0], [-0.25]])
    hidden[:, E2M1_GROUP * group : E2M1_GROUP * (group + 1)] = factors.to(dtype)
    z = sparse_logits(
        hidden, e2m1_rows(codes), torch.arange(256, dtype=torch.int32), weight_scale=scale
    )
    wanted = every_scale().float() * 1.5 * E2M1_GROUP * factors
    assert int(wanted.isnan().sum()) == 4
    assert_bitwise(z + 0.0, wanted + 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_packed_equals_indexed(dtype: torch.dtype) -> None:
    options = {
        "m": 9, "dim": 80, "num_groups": 2, "bias": dtype, "logit_scale": 0.7, "softcap": 20.0
    }  # fmt: skip
    calls = [
        head_case(15, dtype=dtype, weight_dtype=E2M1, packed=packed, **options)
        for packed in (False, True)
    ]
    one, other = (sparse_logits(*case.tensors(), **case.options()) for case in calls)
    assert_bitwise(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [64, 80])
def test_tables_that_start_anywhere(dim: int, offset: int) -> None:
    """Rows and scales may start at any byte."""
    case = head_case(6, m=3, dim=dim, dtype=torch.float16, weight_dtype=E2M1)
    assert case.weight_scale is not None
    elsewhere = case.changed(
        weight=moved(case.weight, offset), weight_scale=moved(case.weight_scale, offset)
    )
    check_against_float64(elsewhere, k=7)


@pytest.mark.backends(*CPU, "reference")
@pytest.mark.parametrize("mode", ["indexed", "packed"])
def test_a_heads_checkpoint_serves_as_it_lies(mode: str) -> None:
    """compressed-tensors and ModelOpt store bytes, e4m3 scales, and one factor for the tensor."""
    case = head_case(3, m=4, dim=64, vocab_size=40, capacity=40, active=40, weight_dtype=E2M1)
    assert case.weight_scale is not None
    stored, factor, bias = case.weight.view(torch.uint8), 0.0375, torch.randn(40)
    vocab = ActiveVocab(40, 10, frequent_tokens=torch.arange(0, 40, 4), device="cpu")
    head = SparseHead(
        stored.view(torch.float4_e2m1fn_x2), vocab, mode=mode, weight_scale=case.weight_scale,
        bias=bias / factor, logit_scale=factor,
    )  # fmt: skip
    rows = e2m1_columns(case.weight).double()
    rows *= case.weight_scale.double().repeat_interleave(E2M1_GROUP, 1) * factor
    dense = case.hidden.double() @ rows.T + bias
    for _ in range(2):
        z, ids = head.logits(case.hidden)
        assert_close(z, dense.gather(1, ids), 1e-5)
        logits, token_ids, logsumexp = head(case.hidden, 3)
        assert_close(logsumexp, dense.gather(1, ids).logsumexp(1), 1e-5)
        assert_close(logits, dense.gather(1, token_ids), 1e-5)
        head.observe(torch.tensor([1, 2, 3, 21]))
