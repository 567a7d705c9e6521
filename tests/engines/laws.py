# SPDX-License-Identifier: Apache-2.0
"""The law of texts that an engine has drawn from the flat target."""

import torch
from checkpoints import VOCAB, flat_law
from torch import Tensor


def check_flat_law(texts: list[list[int]], before: int) -> None:
    """Check each place of texts drawn at temperature 1 after the token `before`.

    Chi-square lies less than five standard deviations above its mean.
    """
    transitions = flat_law()
    expected = transitions[before]
    assert expected.max() < 0.3, "the law is not flat"
    for place in range(len(texts[0])):
        counts = torch.tensor([text[place] for text in texts]).bincount(minlength=VOCAB)
        found = chi_square(counts.double(), len(texts) * expected)
        assert found < 5, f"place {place}: {found}"
        expected = expected @ transitions


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """Return chi-square in its standard deviations from its mean; rare tokens count together."""
    bins: list[list[float]] = [[0.0, 0.0]]
    for token in expected.argsort().tolist():
        if bins[-1][1] >= 8:
            bins.append([0.0, 0.0])
        bins[-1][0] += float(counts[token])
        bins[-1][1] += float(expected[token])
    squares = sum((count - mean) ** 2 / mean for count, mean in bins)
    freedom = len(bins) - 1
    return (squares - freedom) / (2 * freedom) ** 0.5
