# SPDX-License-Identifier: Apache-2.0
"""The committed demonstration pair is lossless, and drafting with it pays."""

from pathlib import Path

import numpy as np
import pytest
import torch

from microspec_kernels.cli.tokenizers import Tekken
from microspec_kernels.speculative import (
    CausalModel,
    EagleDraft,
    Sampling,
    generate,
    load_draft,
    load_target,
)
from microspec_kernels.speculative.alone import target_alone

PAIR = Path(__file__).parent.parent / "examples" / "tiny_pair"
PROMPT = "A shop sells pens for $3 each. Ann buys 7 pens and pays with $50. What is her change?"


@pytest.fixture(scope="module")
def pair() -> tuple[CausalModel, EagleDraft]:
    target = load_target(PAIR / "target")
    draft = load_draft(PAIR / "draft", target)
    assert isinstance(draft, EagleDraft)
    return target, draft


@pytest.mark.parametrize(("head", "capacity"), [("static", 32768), ("sparse", 3072)])
def test_lossless_and_accepted(
    pair: tuple[CausalModel, EagleDraft], head: str, capacity: int
) -> None:
    ids = torch.tensor(Tekken().encode(PROMPT))
    frequent_tokens = torch.from_numpy(np.load(PAIR / "frequent_tokens.npy"))
    result = generate(*pair, ids, 40, head=head, capacity=capacity, frequent_tokens=frequent_tokens)
    assert result.tokens.tolist() == target_alone(pair[0], ids, 40, Sampling()).tokens.tolist()
    assert result.stats.tau >= 2.5
    assert result.stats.active_max <= capacity
    assert result.stats.coverage >= 0.9


def test_the_whole_pair_is_small() -> None:
    files = [path for path in PAIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if "cache" not in str(path)) <= 24e6
