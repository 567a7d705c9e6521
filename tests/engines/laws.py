# SPDX-License-Identifier: Apache-2.0
"""The law of texts that an engine has drawn from the flat target."""

import torch
from checkpoints import flat_law
from torch import Tensor


def check_flat_law(texts: list[list[int]], before: int) -> None:
    """Check texts drawn at temperature 1 after the token `before`: the first token, and the others.

    A token counts by its rank in the target's law after the token before it, so a draft that is
    accepted too often shows wherever it stands. Chi-square lies less than seven standard deviations
    above its mean.
    """
    transitions, ranked = flat_law().sort(dim=1, descending=True, stable=True)
    assert transitions.max() < 0.3, "the law is not flat"
    tokens = torch.tensor([[before, *text] for text in texts])
    for place, last in ((0, 1), (1, tokens.size(1) - 1)):
        previous = tokens[:, place:last].flatten()
        drawn = tokens[:, place + 1 : last + 1].flatten()
        ranks = (ranked[previous] == drawn[:, None]).int().argmax(1)
        counts = ranks.bincount(minlength=ranked.size(1)).double()
        found = chi_square(counts, transitions[previous].sum(0))
        assert found < 7, f"from place {place} on: {found}"


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """Return chi-square in its standard deviations from its mean; about five kinds of tokens."""
    bins: list[list[float]] = [[0.0, 0.0]]
    for token in expected.argsort().tolist():
        if bins[-1][1] >= float(expected.sum()) / 6:
            bins.append([0.0, 0.0])
        bins[-1][0] += float(counts[token])
        bins[-1][1] += float(expected[token])
    squares = sum((count - mean) ** 2 / mean for count, mean in bins)
    freedom = len(bins) - 1
    return (squares - freedom) / (2 * freedom) ** 0.5
