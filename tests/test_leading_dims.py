# SPDX-License-Identifier: Apache-2.0
"""Functions and modules take hidden [..., D]: each row's result is that of the flat [M, D]."""

import math
from typing import Any

import pytest
import torch
from backends_under_test import ALL
from compare import assert_bitwise
from generators import normal
from torch import Tensor

from microspec_kernels import (
    ActiveVocab,
    EngineHead,
    Settings,
    SparseHead,
    SparseLMHead,
    sparse_head,
    sparse_logits,
)

V, K, D = 50, 16, 24
SHAPES = [(), (1,), (5,), (2, 3), (3, 1, 2), (0,), (2, 0, 3), (0, 2)]


def weight_and_ids(num_groups: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(V, generator=rng)[:K] for _ in range(num_groups)]).int()
    return normal(rng, (V, D), torch.float32), ids


def hidden_of(shape: tuple[int, ...]) -> Tensor:
    return normal(torch.Generator().manual_seed(2), (*shape, D), torch.float32)


def groups_of(shape: tuple[int, ...], num_groups: int) -> Tensor | None:
    rng = torch.Generator().manual_seed(3)
    return None if num_groups == 1 else torch.randint(-1, num_groups, shape, generator=rng)


def assert_leading(results: tuple[Tensor, ...], flat: tuple[Tensor, ...], shape: Any) -> None:
    for got, want in zip(results, flat, strict=True):
        assert_bitwise(got, want.view((*shape, *want.shape[1:])))


def check_functions(hidden: Tensor, num_groups: int) -> None:
    shape = hidden.shape[:-1]
    weight, ids = weight_and_ids(num_groups)
    groups = groups_of(shape, num_groups)
    flat = hidden.reshape(math.prod(shape), D)
    flat_groups = None if groups is None else groups.reshape(-1)
    want = sparse_head(flat, weight, ids, 5, group_ids=flat_groups)
    assert_leading(sparse_head(hidden, weight, ids, 5, group_ids=groups), want, shape)
    logits = sparse_logits(flat, weight, ids, group_ids=flat_groups)
    got = sparse_logits(hidden, weight, ids, group_ids=groups)
    assert_leading((got,), (logits,), shape)


@pytest.mark.backends(*ALL)
@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_functions(shape: tuple[int, ...], num_groups: int) -> None:
    check_functions(hidden_of(shape), num_groups)


@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1),  # rows of two strides: copied
        lambda x: x[:, ::2],
        lambda x: x[..., 3 : 3 + D],
        lambda x: x[:, -1:].expand(-1, 4, -1),
        lambda x: x[1, 2],
    ],
    ids=["transposed", "every second", "part of the columns", "expanded", "one row"],
)
def test_views(view: Any, num_groups: int) -> None:
    rng = torch.Generator().manual_seed(4)
    hidden = view(normal(rng, (3, 4, D + 5), torch.float32))[..., :D]
    assert hidden.stride(-1) == 1
    check_functions(hidden, num_groups)


@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("mode", ["indexed", "packed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_modules(shape: tuple[int, ...], mode: Any, num_groups: int) -> None:
    weight, ids = weight_and_ids(num_groups)
    hidden, groups = hidden_of(shape), groups_of(shape, num_groups)
    flat = hidden.reshape(math.prod(shape), D)
    flat_groups = None if groups is None else groups.reshape(-1)
    for kind in (SparseHead, SparseLMHead):
        head = kind(weight, ActiveVocab(V, K + 2, num_groups=num_groups), mode=mode)
        head.observe(ids)
        assert_leading(head.logits(hidden, groups), head.logits(flat, flat_groups), shape)
        if isinstance(head, SparseHead):
            assert_leading(head(hidden, 5, groups), head(flat, 5, flat_groups), shape)
        else:
            assert_leading((head(hidden, groups),), (head(flat, flat_groups),), shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_engine_head(shape: tuple[int, ...]) -> None:
    weight, ids = weight_and_ids(1)
    head = EngineHead(weight, Settings(capacity=K, learn=False))
    head.observe(ids[0])
    hidden = hidden_of(shape)
    flat = hidden.reshape(math.prod(shape), D)
    assert_leading(head.topk(hidden, 4), head.topk(flat, 4), shape)
    assert_leading((head.argmax(hidden),), (head.argmax(flat),), shape)
    assert_leading((head.slot_logits(hidden),), (head.slot_logits(flat),), shape)


@pytest.mark.parametrize("function", [sparse_head, sparse_logits])
def test_bad_arguments(function: Any) -> None:
    weight, ids = weight_and_ids(2)
    k = (5,) if function is sparse_head else ()
    name = f"microspec::{function.__name__}"
    # The right number of groups in another shape, and a hidden whose copy would hide its stride.
    groups = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=rf"^{name}: group_ids: .*shape \[2, 3\] or \[1\], got \[6\]$"
    ):
        function(hidden_of((2, 3)), weight, ids, *k, group_ids=groups)
    for hidden in (torch.zeros(2, D, 3).mT, torch.zeros(2 * D)[::2]):
        with pytest.raises(ValueError, match=rf"^{name}: hidden: expected stride 1 in the last"):
            function(hidden, weight, ids[0], *k)


@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("op", ["sparse_head", "sparse_logits"])
def test_ops_take_a_matrix(op: str, shape: tuple[int, ...]) -> None:
    weight, ids = weight_and_ids(1)
    k = (5,) if op == "sparse_head" else ()
    with pytest.raises(RuntimeError, match=rf"{op}: hidden: expected shape \[M, D\], got"):
        getattr(torch.ops.microspec, op)(hidden_of(shape), weight, ids, *k)


def test_gradient_is_refused() -> None:
    weight, ids = weight_and_ids(1)
    logits, _, _ = sparse_head(hidden_of((2, 3)).requires_grad_(), weight, ids, 5)
    with pytest.raises(NotImplementedError, match="hidden: expected no backward pass"):
        logits.sum().backward()


def test_compiled() -> None:
    weight, ids = weight_and_ids(2)
    hidden, groups = hidden_of((2, 3)), groups_of((2, 3), 2)
    call = torch.compile(sparse_head, fullgraph=True, backend="eager")
    want = sparse_head(hidden, weight, ids, 5, group_ids=groups)
    for got, expected in zip(call(hidden, weight, ids, 5, group_ids=groups), want, strict=True):
        assert_bitwise(got, expected)
