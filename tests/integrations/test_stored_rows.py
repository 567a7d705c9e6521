# SPDX-License-Identifier: Apache-2.0
"""The rows of quantised LM heads, as the engines' layers store them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.engine import EngineHead, Settings
from microspec_kernels.integrations.hooks import StoredRows, stored_rows
from microspec_kernels.integrations.hooks.stored_rows import unswizzled

from .stored_layers import READABLE, checkpoint_order, cutlass, eight_bits, layer, swizzled

ROWS = 300


def random_rows(columns: int = 64, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def read(stored: Any, rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> StoredRows:
    apply = stored.quant_method.apply
    return stored_rows(stored, rows, columns, dtype, lambda states: apply(stored, states, None))


def head_of(found: StoredRows) -> EngineHead:
    head = EngineHead(
        found.weight,
        Settings(capacity=len(found.weight), target_top_k=1),
        weight_scale=found.weight_scale,
        logit_scale=found.logit_scale,
    )
    head.observe(torch.arange(len(found.weight)))
    return head


@pytest.mark.parametrize("columns", [64, 80, 128])
@pytest.mark.parametrize("name", READABLE)
def test_the_head_equals_the_engines(name: str, columns: int) -> None:
    stored = READABLE[name](random_rows(columns))
    found = read(stored, ROWS, columns)
    hidden = torch.randn(20, columns, generator=torch.Generator().manual_seed(2))
    wanted = hidden @ stored.quant_method.values.T
    logits, tokens, _ = head_of(found).topk(hidden, 5)
    torch.testing.assert_close(logits, wanted.topk(5).values, rtol=1e-4, atol=1e-4)
    assert torch.equal(tokens[:, 0], wanted.argmax(-1))


@pytest.mark.parametrize("name", READABLE)
def test_the_rows_are_not_copied(name: str) -> None:
    stored = READABLE[name](random_rows())
    found = read(stored, ROWS, 64)
    assert found.weight.data_ptr() == stored.weight.data_ptr() and not found.moved()
    stored.weight = stored.weight.clone()
    assert found.moved()


@pytest.mark.parametrize("name", ["fp8", "fp8, one scale", "nvfp4, CUTLASS", "nvfp4, SGLang"])
def test_scales_that_change_in_place(name: str) -> None:
    stored = READABLE[name](random_rows())
    found = read(stored, ROWS, 64)
    before = found.weight_scale
    assert before is not None
    wanted, address = before.float() * 2, before.data_ptr()
    for scale in (stored.weight_scale, getattr(stored, "weight_scale_interleaved", None)):
        if scale is not None:
            scale.copy_((scale.float() * 2).to(scale.dtype))
    found.refresh()
    assert found.weight_scale is not None and found.weight_scale.data_ptr() == address
    assert torch.equal(found.weight_scale.float(), wanted.to(found.weight_scale.dtype).float())


@pytest.mark.parametrize("name", READABLE)
def test_a_layer_made_in_inference_mode(name: str) -> None:
    """Engines load models in it, and update weights outside it."""
    with torch.inference_mode():
        stored = READABLE[name](random_rows())
        found = read(stored, ROWS, 64)
    found.refresh()
    head_of(found).argmax(torch.randn(2, 64))


@pytest.mark.parametrize(("rows", "blocks"), [(128, 4), (128, 8), (300, 5), (1, 1), (257, 12)])
def test_unswizzled_undoes_the_swizzle(rows: int, blocks: int) -> None:
    scale = torch.randn(rows, blocks).to(torch.float8_e4m3fn)
    assert torch.equal(unswizzled(swizzled(scale), rows, blocks).float(), scale.float())


def test_a_row_with_nan_is_left_to_the_head() -> None:
    stored = READABLE["fp8"](random_rows())
    stored.weight_scale[7] = stored.quant_method.values[7] = float("nan")
    assert head_of(read(stored, ROWS, 64)).token_map.to_rows(torch.tensor([6, 7])).tolist() == [
        6,
        -1,
    ]


def shuffled_rows() -> Any:
    stored = cutlass(random_rows())
    stored.weight = stored.weight.view(-1, 2, 16, 32).transpose(1, 2).reshape(stored.weight.shape)
    return stored


def reordered_scales() -> Any:
    """Neither the columns' order nor the swizzle's, in the shape of both."""
    stored = checkpoint_order(random_rows(64, 128))
    stored.weight_scale = stored.weight_scale.view(torch.uint8).flip(1).view(torch.float8_e4m3fn)
    return stored


def no_factor() -> Any:
    stored = checkpoint_order(random_rows())
    del stored.weight_global_scale
    return stored


def marlin() -> Any:
    values = random_rows()
    return layer(values, weight=torch.zeros(4, ROWS * 2, dtype=torch.int32), weight_scale=values)


def block_scales() -> Any:
    stored = eight_bits(torch.float8_e4m3fn)(random_rows(256))
    stored.weight_scale = torch.ones(3, 2)
    return stored


def zero_points() -> Any:
    stored = eight_bits(torch.int8)(random_rows())
    stored.quant_method.values = stored.quant_method.values + 0.3
    return stored


@pytest.mark.parametrize(
    "make", [shuffled_rows, reordered_scales, no_factor, marlin, block_scales, zero_points]
)
def test_what_cannot_be_read(make: Any) -> None:
    stored = make()
    rows, columns = stored.quant_method.values.shape
    with pytest.raises(
        ValueError, match=r"Method with weight .* not fp8, int8 or nvfp4 in the ord"
    ):
        read(stored, rows, columns)
