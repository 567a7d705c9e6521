"""Whether samples follow a law: a test whose false alarms are bounded, not estimated."""

import math

import torch
from torch import Tensor

# Over all the tests that use this together: at most TESTS of them, each with an equal share.
FALSE_ALARM, TESTS = 1e-6, 1000


def distance(samples: Tensor, law: Tensor) -> tuple[float, float]:
    """The total variation between samples int64 [n] and a law fp64 [cells], and its bound.

    Independent samples that follow the law exceed the bound with a probability below
    FALSE_ALARM / TESTS, whatever n and the law. The L1 distance D of the observed shares has
    E D <= sum of sqrt(p (1 - p) / n), by Jensen, cell by cell; and one sample moves D by at most
    2/n, so P(D >= E D + t) <= exp(-n t^2 / 2), by McDiarmid. The total variation is D / 2.
    """
    count = len(samples)
    shares = torch.bincount(samples, minlength=len(law)).double() / count
    assert len(shares) == len(law), "a sample outside the law's cells"
    spread = (law * (1 - law) / count).sqrt().sum().item()
    deviation = math.sqrt(2 * math.log(TESTS / FALSE_ALARM) / count)
    return (shares - law).abs().sum().item() / 2, (spread + deviation) / 2


def check(samples: Tensor, law: Tensor) -> None:
    """Fails where the samples do not follow the law."""
    got, bound = distance(samples, law)
    assert got <= bound, f"total variation {got:.4f} from the law, more than {bound:.4f}"
