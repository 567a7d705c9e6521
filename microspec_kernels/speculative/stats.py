"""What a generation cost and how much of the draft was right."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor


@dataclass
class Stats:
    """Counts and seconds of one generation.

    `acceptance_lengths`: tokens that each verification produced, bonus included. `active_sizes`:
    tokens the draft could propose at each step. `covered`: how many of the tokens so produced it
    could propose. `seconds` by part: `prefill` (target), `draft_layer`, `head`, `vocabulary`
    (observing tokens, counting coverage), `tree` (choosing its nodes), `verify` (target, its
    logits, walk, cache) and `total`, which holds the others and the loop between them. On a GPU
    the device is synchronised at each part's ends, so that a part's time is its own.
    """

    acceptance_lengths: list[int] = field(default_factory=list)
    active_sizes: list[int] = field(default_factory=list)
    covered: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Passes of the target after the prefill, each with a draft before it."""
        return len(self.acceptance_lengths)

    @property
    def tau(self) -> float:
        """Mean acceptance length; 0 where nothing was drafted."""
        return fmean(self.acceptance_lengths) if self.steps else 0.0

    @property
    def histogram(self) -> dict[int, int]:
        """How many steps had each acceptance length."""
        return dict(sorted(Counter(self.acceptance_lengths).items()))

    @property
    def active_mean(self) -> float:
        """Mean number of tokens the draft could propose; 0 where nothing was drafted."""
        return fmean(self.active_sizes) if self.steps else 0.0

    @property
    def active_max(self) -> int:
        """Largest number of tokens the draft could propose; 0 where nothing was drafted."""
        return max(self.active_sizes, default=0)

    @property
    def coverage(self) -> float:
        """Share of the target's tokens that were active when drafted; 0 where none were."""
        return self.covered / max(1, sum(self.acceptance_lengths))

    def as_dict(self) -> dict[str, object]:
        """Everything above but the per-step lists, ready for JSON."""
        return {
            "steps": self.steps,
            "tau": self.tau,
            "histogram": self.histogram,
            "active_mean": self.active_mean,
            "active_max": self.active_max,
            "coverage": self.coverage,
            "seconds": dict(self.seconds),
        }


@dataclass
class Generation:
    """`tokens` int64 [n]: the new tokens alone, on the CPU, end of text included.

    `acceptance_lengths` are the stats'. The first token comes from the prefill, so
    1 + sum(acceptance_lengths) = n where n > 0.
    """

    tokens: Tensor
    acceptance_lengths: list[int]
    stats: Stats


class Clock:
    """Adds up in `seconds` what each named part took."""

    def __init__(self, device: torch.device, seconds: dict[str, float]) -> None:
        self._device = device
        self._seconds = seconds

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self._now()
        yield
        self._seconds[part] = self._seconds.get(part, 0.0) + self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
