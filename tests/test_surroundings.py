# SPDX-License-Identifier: Apache-2.0
"""Objects made under another default dtype or device, or in inference mode, work like others."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from compare import assert_bitwise
from torch import Tensor

from microspec_kernels import ActiveVocab, Coverage, SparseHead, SparseLMHead, WeightSlab, policy
from microspec_kernels.engine import EngineHead, Settings

WEIGHT = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
HIDDEN = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
TOKENS = torch.tensor([[3, 4], [5, 6]])


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND: dict[str, Callable[[], Any]] = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "inference": torch.inference_mode,
    "meta": lambda: torch.device("meta"),
}


def make() -> dict[str, Any]:
    vocab = ActiveVocab(30, 5, num_groups=2, pinned=[9], frequent_tokens=[1, 2])
    slab = WeightSlab(WEIGHT, vocab, dtype=torch.int8)
    return {
        "vocab": vocab,
        "slab": slab,
        "coverage": Coverage(vocab),
        "head": SparseHead(WEIGHT, vocab, mode="packed", slab_dtype=torch.float8_e4m3fn),
        "lm_head": SparseLMHead(WEIGHT, vocab),
        "engine": EngineHead(WEIGHT, Settings(capacity=5, mode="packed"), target_vocab_size=40),
    }


def use(objects: dict[str, Any]) -> dict[str, Tensor]:
    """Call everything that changes state, and everything that reads it."""
    vocab, slab, coverage, engine = (objects[n] for n in ("vocab", "slab", "coverage", "engine"))
    coverage.count(TOKENS)
    vocab.update(TOKENS)
    slab.refresh()
    vocab.reset([1])
    slab.refresh()
    groups = torch.tensor([0, 1, -1], device="cpu")
    view = slab.front(groups)
    objects["head"].observe(TOKENS)
    engine.observe(TOKENS[0])
    engine.begin([0], [TOKENS[0].cpu()])
    engine.observe(TOKENS[:1], lengths=TOKENS[0, :1], candidates=TOKENS[1])
    results = {
        "rows": view.rows, "ids": view.ids, "scale": view.scale, "groups": view.group_ids,
        "share": coverage.share, "recent": coverage.recent,
        "dense": objects["lm_head"](HIDDEN, groups),
        "engine logits": engine.slot_logits(HIDDEN), "engine tokens": engine.slot_tokens(),
        **vocab.state_dict(),
    }  # fmt: skip
    for name, tensor in zip(
        ("top", "tokens", "lse"), objects["head"](HIDDEN, 3, groups), strict=True
    ):
        results[name] = tensor
    coverage.reset([0])
    vocab.load_state_dict(vocab.state_dict())
    engine.reset()
    return results


@pytest.mark.parametrize("used_inside", [False, True])
@pytest.mark.parametrize("around", AROUND)
def test_made_there_and_used_anywhere(around: str, used_inside: bool) -> None:
    want = use(make())
    with AROUND[around]():
        objects = make()
        got = use(objects) if used_inside else {}
    if not used_inside:
        got = use(objects)
    for name, tensor in want.items():
        assert_bitwise(got[name], tensor, name)


@pytest.mark.parametrize("around", AROUND)
def test_a_list_of_frequent_tokens(around: str) -> None:
    texts = [torch.tensor([1, 2, 1, 3]), torch.tensor([2, 1])]
    want = policy.count_frequent_tokens(texts, 5, prior=[4])
    with AROUND[around]():
        got = policy.count_frequent_tokens(texts, 5, prior=[4])
    assert_bitwise(got, want)
