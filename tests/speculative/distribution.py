# SPDX-License-Identifier: Apache-2.0
"""A test whether samples follow a distribution. It bounds the rate of false alarms."""

import math

import torch
from torch import Tensor

# The false alarm rate of all tests that use this module together. Each of at most TESTS tests has
# an equal share.
FALSE_ALARM, TESTS = 1e-6, 1000


def distance(samples: Tensor, distribution: Tensor) -> tuple[float, float]:
    """Return the total variation and its bound for samples int64 [n], distribution fp64 [cells].

    Independent samples of the distribution exceed the bound with a probability below FALSE_ALARM /
    TESTS, for every n and distribution. The L1 distance D of the observed shares has E D <= sum of
    sqrt(p (1 - p) / n), by Jensen, cell by cell. One sample moves D by at most 2/n, so P(D >= E D +
    t) <= exp(-n t^2 / 2), by McDiarmid. The total variation is D / 2.
    """
    count = len(samples)
    shares = torch.bincount(samples, minlength=len(distribution)).double() / count
    assert len(shares) == len(distribution), "a sample outside the distribution's cells"
    spread = (distribution * (1 - distribution) / count).sqrt().sum().item()
    deviation = math.sqrt(2 * math.log(TESTS / FALSE_ALARM) / count)
    return (shares - distribution).abs().sum().item() / 2, (spread + deviation) / 2


def check(samples: Tensor, distribution: Tensor) -> None:
    """Fail if the samples do not follow the distribution."""
    got, bound = distance(samples, distribution)
    assert got <= bound, f"total variation {got:.4f} from the distribution, more than {bound:.4f}"
