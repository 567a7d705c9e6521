# SPDX-License-Identifier: Apache-2.0
"""Statistics of one generation: counts, seconds, and how many drafted tokens were accepted."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor


@dataclass
class Stats:
    """Counts and seconds of one generation.

    `acceptance_lengths`: tokens that each verification produced, bonus included.
    `active_sizes`: tokens the draft could propose at each step.
    `covered`: whether the draft could propose each of the produced tokens.
    `seconds`: `total`, from joining on; on a GPU each step ends with a read, so it is the device's
        time, too. In a batch that is `timed` also each part's time: `prefill` (target),
        `draft_layer`, `head`, `vocabulary` (observing tokens, counting coverage), `tree` (choosing
        its nodes) and `verify` (target, its logits, walk, cache). On a GPU the clock then
        synchronises the device at both ends of each part, and no graph is captured.
    """

    acceptance_lengths: list[int] = field(default_factory=list)
    active_sizes: list[int] = field(default_factory=list)
    covered: list[bool] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of the target's passes after the prefill; each verifies one draft."""
        return len(self.acceptance_lengths)

    @property
    def tau(self) -> float:
        """Mean acceptance length; 0 without a step."""
        return fmean(self.acceptance_lengths) if self.steps else 0.0

    @property
    def histogram(self) -> dict[int, int]:
        """Number of steps with each acceptance length, by ascending length."""
        return dict(sorted(Counter(self.acceptance_lengths).items()))

    @property
    def active_mean(self) -> float:
        """Mean number of tokens the draft could propose; 0 without a step."""
        return fmean(self.active_sizes) if self.steps else 0.0

    @property
    def active_max(self) -> int:
        """Largest number of tokens the draft could propose; 0 without a step."""
        return max(self.active_sizes, default=0)

    @property
    def coverage(self) -> float:
        """Share of the produced tokens that were active when drafted; 0 without a step."""
        return coverage_of([self])

    def as_dict(self) -> dict[str, object]:
        """Return everything above except the per-step lists, ready for JSON."""
        return {
            "steps": self.steps,
            "tau": self.tau,
            "histogram": self.histogram,
            "active_mean": self.active_mean,
            "active_max": self.active_max,
            "coverage": self.coverage,
            "seconds": dict(self.seconds),
        }


def coverage_of(texts: Sequence[Stats]) -> float:
    """Return the share of all texts' produced tokens that were active when drafted; 0 if none."""
    produced = sum(sum(text.acceptance_lengths) for text in texts)
    return sum(sum(text.covered) for text in texts) / max(1, produced)


def coverage_of_accepted(texts: Sequence[Stats], dense: Sequence[Stats]) -> float:
    """Return which share of the tokens that a dense head got accepted were active; NaN if none.

    These are the only tokens whose absence costs acceptance length.

    texts, dense: the same texts by a sparse head and by a dense one. A dense head got all tokens of
        a step accepted but the last, which is the target's.
    """
    active = [
        hit
        for text, by_dense in zip(texts, dense, strict=True)
        for hit, accepted in zip(text.covered, _accepted(by_dense), strict=True)
        if accepted
    ]
    return fmean(active) if active else math.nan


def _accepted(text: Stats) -> list[bool]:
    """Tell of each token after the first whether it was drafted."""
    return [place + 1 < length for length in text.acceptance_lengths for place in range(length)]


@dataclass
class Generation:
    """The output of one text.

    `tokens` int64 [n], on the CPU: the new tokens only, end of text included.
    `acceptance_lengths`: the same list as in `stats`. The first token comes from the prefill, so 1
        + sum(acceptance_lengths) = n where n > 0.
    """

    tokens: Tensor
    acceptance_lengths: list[int]
    stats: Stats


class Clock:
    """A clock that adds the time of each named part to `seconds`, if it is `on`."""

    def __init__(self, device: torch.device, seconds: dict[str, float], on: bool) -> None:
        self._device = device
        self._seconds = seconds
        self._on = on

    def step(self) -> AbstractContextManager[None]:
        """Return the context of a step. See `Timeline`."""
        return nullcontext()

    @contextmanager
    def __call__(self, part: str, stream: Any = None) -> Iterator[None]:
        if not self._on:
            yield
            return
        start = self._now()
        yield
        self._seconds[part] = self._seconds.get(part, 0.0) + self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
