# SPDX-License-Identifier: Apache-2.0
"""Paths of the Triton kernels that the shared tests do not reach: several tiles, and arithmetic.

The arithmetic is the part written by hand. Tiles are small, because the interpreter is too slow for
large shapes.
"""

import importlib
from typing import Any

import pytest
import torch
from backends_under_test import TRITON
from compare import assert_bitwise, assert_close, assert_top_k, ids_by_row, logits_in, tolerance
from generators import FLOATS, head_case, vocab_state

from microspec_kernels import (
    reference,
    sparse_head,
    sparse_logits,
    vocab_refill_,
    vocab_update_,
)
from microspec_kernels._checks import MAX_TOP_K

if not TRITON:
    pytest.skip("for a process with TRITON_INTERPRET=1", allow_module_level=True)
pytestmark = pytest.mark.backends(*TRITON)


def module(name: str) -> Any:
    return importlib.import_module(f"microspec_kernels.triton_kernels.{name}")


@pytest.mark.parametrize("k", [1, 10, MAX_TOP_K])
def test_selection_over_several_rounds(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Select from the first 128 slots, then better ones from the rest; NaN is in a later round."""
    monkeypatch.setattr(module("sparse_head"), "BLOCK", 128)
    options = {"dim": 20, "capacity": 500, "vocab_size": 900, "active": 450, "num_groups": 2}
    case = head_case(3, m=3, padding=True, **options)
    spoilt = case.weight.clone()
    spoilt[case.active_ids[0, 400:][case.active_ids[0, 400:] >= 0][0].long()] = float("nan")
    for these in (case, case.changed(weight=spoilt)):
        got = sparse_head(*these.tensors(), k, **these.options())
        want = reference.sparse_head(*these.tensors(), k, **these.options())
        assert_bitwise(got[1], want[1])
        assert_close(got[0], want[0], tolerance(case))
        assert_close(got[2], want[2], tolerance(case))


def test_a_row_that_only_the_last_round_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module("sparse_head"), "BLOCK", 128)
    ids = torch.full((300,), -1, dtype=torch.int32)
    ids[[150, 290, 299]] = torch.tensor([5, 2, 9], dtype=torch.int32)
    weight = torch.arange(10.0)[:, None] * -1
    _, token_ids, logsumexp = sparse_head(torch.ones(1, 1), weight, ids, 4)
    assert token_ids.tolist() == [[2, 5, 9, -1]]
    assert_close(logsumexp, torch.tensor([-2.0, -5.0, -9.0]).logsumexp(0)[None], 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_more_rows_of_hidden_than_a_program_takes(dtype: torch.dtype) -> None:
    """Members of a group are all over the batch, in several blocks; D has several stretches."""
    case = head_case(
        4, m=150, dim=300, capacity=70, vocab_size=90, num_groups=2, padding=True, dtype=dtype
    )
    exact = logits_in(case, torch.float64)
    assert_close(sparse_logits(*case.tensors(), **case.options()), exact, tolerance(case))
    got = sparse_head(*case.tensors(), 5, **case.options())
    assert_top_k(got[:2], exact, ids_by_row(case), tolerance(case))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("clock", [0, 2**62])
def test_vocabulary_of_several_tiles(
    ragged: bool, clock: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module("vocab_update"), "BLOCK", 16)
    rng = torch.Generator().manual_seed(0)
    got = vocab_state(80, 33, num_groups=2, pinned=(5, 6), clock=clock)
    want = got.copy()
    for count in (7, 50, 3, 90):
        tokens = torch.randint(-1, 80, (count,) if ragged else (2, count), generator=rng)
        groups = torch.randint(-1, 2, (count,), generator=rng) if ragged else None
        vocab_update_(*got.tensors(), tokens, token_groups=groups)
        reference.vocab_update_(*want.tensors(), tokens, token_groups=groups)
        for one, other in zip(got.tensors(), want.tensors(), strict=True):
            assert_bitwise(one, other)


@pytest.mark.parametrize("ties", [False, True])
def test_refill_of_several_tiles(ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant, size in (("BLOCK", 16), ("STAMPED", 4), ("COMPARED", 8)):
        monkeypatch.setattr(module("vocab_refill"), constant, size)
    rng = torch.Generator().manual_seed(1)
    got = vocab_state(50, 33, num_groups=2, pinned=(5, 6), clock=2**62)
    want = got.copy()
    counts = torch.randint(0, 3 if ties else 50, (2, 50), generator=rng).int()
    ranks = torch.randint(0, 3, (50,), generator=rng) if ties else torch.randperm(50, generator=rng)
    for pinned, reset in ((20, True), (25, False), (10, False)):
        counts += torch.randint(0, 2, counts.shape, generator=rng).int()
        arguments = (counts, ranks.int(), torch.tensor([1, 0]))
        options = {"total_counts": counts.sum(0).int(), "pinned": pinned, "reset": reset}
        vocab_refill_(*got.tensors(), *arguments, **options)
        reference.vocab_refill_(*want.tensors(), *arguments, **options)
        for one, other in zip(got.tensors(), want.tensors(), strict=True):
            assert_bitwise(one, other)


def test_trees_of_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles and large ones give the same: equal costs and parents lie in other tiles."""
    rng, trees = (
        torch.Generator().manual_seed(2),
        importlib.import_module("microspec_kernels.triton_kernels"),
    )
    costs = torch.randint(0, 5, (2, 90), generator=rng).float()
    tokens, frontier = (torch.randint(0, 30, shape, generator=rng) for shape in ((2, 90), (2, 4)))
    parents = (torch.rand(2, 90, generator=rng) * torch.arange(90)).long() - 1
    logits = torch.randint(-9, 2, (8, 10), generator=rng).float()

    def results() -> list[torch.Tensor]:
        pool = [tokens.clone(), parents.clone(), costs.clone()]
        read = logits, tokens[:, :40].reshape(8, 10), logits.amax(1)
        grown = trees.tree_grow_(*pool, *read, 25, begin=50, frontier=frontier)
        cut = trees.tree_cut(tokens[:, 0], tokens, parents, costs, 30)
        accepted = trees.tree_accept(tokens % 2, parents, parents % 2, 12)
        return [*pool, *grown, *cut, *accepted]

    large = results()
    for name, constants in (
        ("grow", {"BLOCK": 16, "COMPARED": 8}),
        ("cut", {"BLOCK": 8, "COMPARED": 16, "TILE": 8, "SWEPT": 16}),
        ("accept", {"BLOCK": 16}),
    ):
        for constant, size in constants.items():
            monkeypatch.setattr(module(f"tree_{name}"), constant, size)
    for one, other in zip(results(), large, strict=True):
        assert_bitwise(one, other)


def test_zeros_of_either_sign_are_equal() -> None:
    """Underflow gives -0 and +0; the lower id is first."""
    weight, ids = torch.tensor([[-1e-30], [1e-30]]), torch.tensor([1, 0], dtype=torch.int32)
    _, token_ids, _ = sparse_head(torch.ones(1, 1), weight, ids, 2, logit_scale=1e-30)
    assert token_ids.tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_e4m3_row_value(dtype: torch.dtype) -> None:
    """Decode every code bit by bit, with subnormals and both NaN."""
    weight = torch.arange(256).to(torch.uint8)[:, None].view(torch.float8_e4m3fn)
    ids = torch.arange(256, dtype=torch.int32)
    z = sparse_logits(torch.ones(1, 1, dtype=dtype), weight, ids, weight_scale=torch.ones(256))
    assert_bitwise(z + 0.0, weight.float().T.contiguous() + 0.0)


def test_tanh_keeps_the_digits_of_small_numbers() -> None:
    values = torch.tensor([2.0**-20, -1e-6, 1e-3, -0.1, 1.0, 18.7, -18.8, 30.0, -400.0, 0.0])
    ids = torch.arange(len(values), dtype=torch.int32)
    z = sparse_logits(torch.ones(1, 1), values[:, None], ids, softcap=30.0)[0].double()
    want = 30 * torch.tanh(values.double() / 30)
    assert bool(((z - want).abs() <= 4 * 2.0**-24 * want.abs()).all()), (z, want)
