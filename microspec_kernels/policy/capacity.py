# SPDX-License-Identifier: Apache-2.0
"""How many active tokens the bytes of a step are worth: the K of ``capacity="auto"``.

A larger K reads more rows of the LM head in each draft step, and misses fewer of the tokens that
the target writes. :func:`choose_capacity` weighs the one against the other. Memory's bandwidth
cancels out: every part of a step is counted in bytes, or in the bytes that the device could read
while it computes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

SIZES = (1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768)
"""The K that are compared. Larger ones gained nothing on any model that was computed."""

# Share of a dense draft's tokens that the target accepts: EAGLE-2's and EAGLE-3's papers report
# chains of 3.5 to 5 tokens a pass, 0.8 gives 3.7 with five drafts.
ACCEPTANCE = 0.8
# Misses count half: a draft rarely gets a rare token right, even with its row. On the demonstration
# pair a tenth (temperature 1) to six tenths (greedy) of the misses cost an accepted token
# (docs/policy.md).
COSTLY_MISSES = 0.5
# A learned list misses 0.153 of the tokens of broad traffic (chat, code, agents, several languages)
# at K = 3072, 0.097 at 8192 and 0.062 at 16384: one over the root of K.
MISSES_AT, MISSES = 3072, 0.153
# Each of the requests that share a vocabulary takes about as many slots: misses at K = 3072 grow by
# 0.24 of them with 8 requests and by 0.56 with 32, and by 0.11 at K = 16384 with 32.
SLOTS_PER_REQUEST = 54
# Operations that a device does while it reads a byte: an H100 295, an H200 206, an A100 153.
OPERATIONS_PER_BYTE = 200.0


@dataclass(frozen=True)
class StepCosts:
    """What a step of speculative decoding reads.

    Attributes:
        target_bytes: the target's weights that one pass reads.
        layer_bytes: the draft's weights without its LM head and embedding.
        row_bytes: one row of the draft's LM head as it is read, scales included.
        num_rows: rows of the dense LM head of the draft.
        num_drafts: draft steps before a pass of the target.
        num_requests: requests that run at a time.
        shared: whether they share one vocabulary.
        slab_row_bytes: one active row, if a slab keeps them in another dtype.
    """

    target_bytes: float
    layer_bytes: float
    row_bytes: float
    num_rows: int
    num_drafts: int = 5
    num_requests: int = 1
    shared: bool = True
    slab_row_bytes: float | None = None

    @property
    def num_sharing(self) -> int:
        """Requests that share a vocabulary."""
        return self.num_requests if self.shared else 1

    def bytes(self, capacity: int) -> float:
        """Return the bytes of a step with K = ``capacity``; with all rows, of the dense head.

        Weights of 16 bits take an operation a byte for each token of the batch, so from
        :data:`OPERATIONS_PER_BYTE` tokens on it is the operations that cost.
        """
        row_bytes, groups = self.row_bytes, 1
        if capacity < self.num_rows:
            row_bytes = self.slab_row_bytes or row_bytes
            groups = 1 if self.shared else self.num_requests
        drafting = max(1.0, self.num_requests / groups / OPERATIONS_PER_BYTE)
        verifying = max(1.0, self.num_requests * (self.num_drafts + 1) / OPERATIONS_PER_BYTE)
        layer = self.layer_bytes * max(1.0, self.num_requests / OPERATIONS_PER_BYTE)
        head = capacity * groups * row_bytes * drafting
        return self.target_bytes * verifying + self.num_drafts * (layer + head)


class Choice(NamedTuple):
    """A number of active tokens and what it is expected to give.

    Attributes:
        capacity: K; the number of rows if the dense head is faster.
        coverage: share of the target's tokens that are active.
        speedup: tokens per second as a multiple of the dense head's.
    """

    capacity: int
    coverage: float
    speedup: float


def expected_misses(capacity: int, num_requests: int = 1) -> float:
    """Return the share of the target's tokens that a learned vocabulary misses.

    It is that of broad traffic. Narrow traffic misses a third of it, see docs/policy.md.

    Args:
        capacity: K.
        num_requests: requests that share the vocabulary.
    """
    crowded = 1 + SLOTS_PER_REQUEST * (num_requests - 1) / capacity
    return min(1.0, MISSES * math.sqrt(MISSES_AT / capacity) * crowded)


def tokens_per_pass(misses: float, num_drafts: int) -> float:
    """Return τ of a chain of drafts: each is accepted if all before it were."""
    accepted = ACCEPTANCE * (1 - COSTLY_MISSES * misses)
    tokens = 1.0
    for _ in range(num_drafts):
        tokens = 1 + accepted * tokens
    return tokens


def choose_capacity(
    costs: StepCosts,
    misses: Callable[[int], float] | None = None,
    *,
    largest: int = SIZES[-1],
) -> Choice:
    """Choose the K with the most tokens per second.

    Args:
        costs: what a step reads.
        misses: returns the share of the target's tokens that K misses; None:
            :func:`expected_misses`.
        largest: the largest K that there is room for, at least 1.

    Returns:
        The best K of :data:`SIZES`, or all rows and a speedup of 1 if no K beats the dense head.
    """
    of_size = misses or (lambda size: expected_misses(size, costs.num_sharing))
    sizes = sorted({min(size, largest) for size in SIZES})
    choices = [
        judge_capacity(costs, size, of_size(size)) for size in sizes if size < costs.num_rows
    ]
    return max([Choice(costs.num_rows, 1.0, 1.0), *choices], key=lambda choice: choice.speedup)


def judge_capacity(costs: StepCosts, capacity: int, missed: float) -> Choice:
    """Return what K = ``capacity`` gives if it misses a share of the target's tokens."""

    def speed(size: int, misses: float) -> float:
        return tokens_per_pass(misses, costs.num_drafts) / costs.bytes(size)

    return Choice(capacity, 1 - missed, speed(capacity, missed) / speed(costs.num_rows, 0.0))


def explain(costs: StepCosts, choice: Choice, *, measured: bool = False) -> str:
    """Return a sentence that says what a choice costs and gives.

    Args:
        costs: what a step reads.
        choice: of :func:`choose_capacity`.
        measured: whether the coverage was measured on the traffic, or expected.
    """
    drafts, dense = costs.num_drafts, costs.bytes(costs.num_rows)
    reads = (
        f"a step of {drafts} draft{'s' * (drafts > 1)} and {costs.num_requests} "
        f"request{'s' * (costs.num_requests > 1)}"
    )
    if choice.capacity >= costs.num_rows:
        return (
            f"all {costs.num_rows} rows: no smaller K would gain, as {reads} reads "
            f"{dense / 1e9:.2f} GB, and {_heads(costs, costs.num_rows):.2f} GB of them are the LM "
            "head's (computed)"
        )
    return (
        f"K = {choice.capacity} of {costs.num_rows} rows: {reads} reads "
        f"{costs.bytes(choice.capacity) / 1e9:.2f} GB instead of {dense / 1e9:.2f}, coverage "
        f"{choice.coverage:.3f} {'measured' if measured else 'expected of broad traffic'}, "
        f"{choice.speedup:.2f} times the tokens per second of the dense head (computed)"
    )


def _heads(costs: StepCosts, capacity: int) -> float:
    """Return the GB of a step that the LM head's rows are."""
    return (costs.bytes(capacity) - costs.bytes(0)) / 1e9
