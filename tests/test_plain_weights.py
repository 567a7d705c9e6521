# SPDX-License-Identifier: Apache-2.0
"""A weight must be a plain tensor with values; otherwise the module's error names its type."""

from typing import Any

import pytest
import torch
from altered import PackedTensor
from torch import Tensor, nn

from microspec_kernels import ActiveVocab, SparseHead, SparseLMHead, WeightSlab
from microspec_kernels.engine import EngineHead, Settings

V, D = 20, 8
WEIGHT = torch.randn(V, D)
PACKED = WEIGHT.as_subclass(PackedTensor)


def sparse_head(weight: Any, **options: Any) -> Any:
    return SparseHead(weight, ActiveVocab(V, 8), **options)


def sparse_lm_head(weight: Any, **options: Any) -> Any:
    return SparseLMHead(weight, ActiveVocab(V, 8), mode="packed", **options)


def slab(weight: Any) -> Any:
    return WeightSlab(weight, ActiveVocab(V, 8))


def engine_head(weight: Any, **options: Any) -> Any:
    return EngineHead(weight, Settings(capacity=8), **options)


MAKERS = {
    "SparseHead": sparse_head, "SparseLMHead": sparse_lm_head, "WeightSlab": slab,
    "EngineHead": engine_head,
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("weight", "error", "got"),
    [
        (PACKED, TypeError, r"a plain torch.Tensor, got altered\.PackedTensor"),
        (nn.Parameter(PACKED), TypeError, r"a plain torch.Tensor, got altered\.PackedTensor"),
        (nn.Linear(D, V), TypeError, r"a plain torch.Tensor, got torch.nn.modules.linear.Linear"),
        (WEIGHT.to_sparse(), TypeError, "a dense tensor, got torch.sparse_coo"),
        (WEIGHT.to("meta"), ValueError, "a tensor with values, got one on meta"),
    ],
)
def test_other_weights_are_named(name: str, weight: Any, error: type[Exception], got: str) -> None:
    with pytest.raises(error, match=f"{name}: weight: expected {got}"):
        MAKERS[name](weight)


@pytest.mark.parametrize("name", ["SparseHead", "SparseLMHead"])
def test_other_biases_and_scales_are_named(name: str) -> None:
    bias = torch.zeros(V).as_subclass(PackedTensor)
    with pytest.raises(TypeError, match=rf"{name}: bias: expected a plain .*PackedTensor"):
        MAKERS[name](WEIGHT, bias=bias)
    scale = torch.ones(V, device="meta")
    with pytest.raises(ValueError, match=f"{name}: weight_scale: expected a tensor with values"):
        MAKERS[name](WEIGHT.to(torch.int8), weight_scale=scale)


@pytest.mark.parametrize("weight", [WEIGHT, nn.Parameter(WEIGHT), nn.Linear(D, V).weight])
def test_plain_ones_are_taken(weight: Tensor) -> None:
    hidden = torch.randn(3, D)
    head = sparse_head(weight)
    head.observe(torch.tensor([3, 5]))
    logits, tokens, _ = head(hidden, 2)
    expected = (hidden @ weight.detach().T)[:, [3, 5]].sort(dim=1, descending=True)
    assert torch.equal(tokens, torch.tensor([3, 5])[expected.indices])
    torch.testing.assert_close(logits, expected.values)
    assert engine_head(weight).capacity == 8
