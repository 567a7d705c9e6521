# SPDX-License-Identifier: Apache-2.0
"""The likeliest tokens, found in chunks of the vocabulary, against PyTorch's own."""

import pytest
import torch

from microspec_kernels.speculative.ranking import CHUNK, likeliest

SIZES = (1, CHUNK - 1, CHUNK, 3 * CHUNK, 7 * CHUNK + 1, 40 * CHUNK)
HOSTILE = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_one_is_the_argmax_with_ties_nan_and_infinity(size: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(size)
    for spread in (1, 5, 10_000):
        logits = torch.randint(spread, (3, 4, size), generator=random).to(dtype)
        for place, value in enumerate(HOSTILE):
            logits[place, 0, torch.randint(size, (2,), generator=random)] = value
        logits[2, 1] = -torch.inf
        assert torch.equal(likeliest(logits, 1), logits.argmax(-1, keepdim=True))


@pytest.mark.parametrize("k", [2, 3, 8])
@pytest.mark.parametrize("size", SIZES[1:])
def test_several_are_the_top_k(size: int, k: int) -> None:
    random = torch.Generator().manual_seed(size)
    for spread in (4, 10_000):  # many ties, or few
        logits = torch.randint(spread, (2, 3, size), generator=random).float()
        logits[0, 1, size // 2] = torch.nan
        found = likeliest(logits, k)
        values = logits.gather(-1, found)
        torch.testing.assert_close(values, logits.topk(k).values, equal_nan=True, rtol=0, atol=0)
        assert all(len(set(row)) == k for row in found.flatten(0, 1).tolist())
