# SPDX-License-Identifier: Apache-2.0
"""Calls of sparse_sample, and a check of their results against the law in float64."""

from dataclasses import dataclass
from typing import Any

import torch
from compare import assert_bitwise
from generators import HeadCase
from torch import Tensor

from microspec_kernels import reference, sparse_logits, sparse_sample

EDGES = (0, 1, -1, 2**31, 2**32 - 1, -(2**32), 2**63 - 1, -(2**63))
SENTINEL = 77.0
MINUS_INFINITY = float("-inf")


def rows_of(seed: int, m: int, temperatures: Any) -> dict[str, Tensor]:
    """Draw seeds and positions of all 64 bits, the first ones from the edges."""
    rng = torch.Generator().manual_seed(seed)
    low, high = -(2**63), 2**63 - 1
    seeds, positions = torch.randint(low, high, (2, m), generator=rng).unbind()
    edges = torch.tensor(EDGES)[: m // 2]
    seeds[: len(edges)], positions[: len(edges)] = edges, edges.flip(0)
    if not isinstance(temperatures, Tensor):
        temperatures = torch.tensor(temperatures).repeat(m)[:m]
    return {"temperatures": temperatures, "seeds": seeds.clone(), "positions": positions.clone()}


def numbers_of(rows: dict[str, Tensor]) -> Tensor:
    """Return u of each row in float64."""
    pairs = zip(rows["seeds"].tolist(), rows["positions"].tolist(), strict=True)
    return torch.tensor(
        [reference.draw_number(*pair) / 2**64 for pair in pairs], dtype=torch.float64
    )


@dataclass(frozen=True)
class Law:
    """The rows' laws in float64, from logits [M, K] and ids [M, K]; -1 is an empty slot."""

    logits: Tensor
    ids: Tensor
    temperatures: Tensor

    def log_probs(self) -> Tensor:
        scaled = self.logits.double() / self.temperatures.double()[:, None]
        return (scaled - scaled.amax(1, keepdim=True)).log_softmax(1)

    def margin(self) -> Tensor:
        """Return how far a running sum may be off: an exponent's rounding, and an exponential's."""
        logs = self.log_probs()
        exponents = (logs - logs.amax(1, keepdim=True)).clamp(min=-100)
        return (logs.exp() * (2 - exponents)).sum(1) * 2.0**-21


def ids_of_rows(case: HeadCase) -> Tensor:
    ids = torch.atleast_2d(case.active_ids).long()
    if case.group_ids is None:
        return ids[:1].expand(len(case.hidden), -1)
    groups = case.group_ids.expand(len(case.hidden)).long()
    return ids[groups.clamp(min=0)].masked_fill((groups < 0)[:, None], -1)


def check_draws(tokens: Tensor, log_probs: Tensor, law: Law, numbers: Tensor) -> int:
    """Check the rows above temperature 0 that have a token; return how many lie on a boundary.

    A row lies on a boundary if its token is not the one that float64 draws. Its number must then
    be within the margin of the token's interval.
    """
    if not law.ids.numel():
        return 0
    logs, margin, moved = law.log_probs(), law.margin(), 0
    sums = logs.exp().cumsum(1)
    for m in range(len(tokens)):
        if not law.temperatures[m] > 0 or not bool((law.ids[m] >= 0).any()):
            continue
        (slot,) = ((law.ids[m] == tokens[m]) & (law.ids[m] >= 0)).nonzero().flatten().tolist()
        below = float(sums[m, slot - 1]) if slot else 0.0
        u, above, off = float(numbers[m]), float(sums[m, slot]), float(margin[m])
        assert below - off <= u <= above + off, f"row {m}: {u} is not in [{below}, {above})"
        moved += not below <= u < above
        want = float(logs[m, slot])
        assert abs(float(log_probs[m]) - want) <= 2.0**-20 * (1 + abs(want)), f"row {m}"
    return moved


def check_logits(token_logits: Tensor, logits: Tensor, tokens: Tensor, targets: list[int]) -> None:
    """Check every element of token_logits [R, V'], which held sentinels before the call."""
    want = torch.full_like(token_logits, SENTINEL)
    for m, target in enumerate(targets):
        if target < 0:
            continue
        want[target] = MINUS_INFINITY
        there = (tokens[m] >= 0) & (tokens[m] < token_logits.size(1))
        want[target, tokens[m, there]] = logits[m, there].to(want.dtype)
    assert_bitwise(token_logits, want, "token_logits")


def check_call(case: HeadCase, rows: dict[str, Tensor], **options: Any) -> int:
    """Draw, and check tokens, log-probabilities and token_logits; see check_draws."""
    tokens, log_probs = sparse_sample(*case.tensors(), **rows, **case.options(), **options)
    logits, ids = sparse_logits(*case.tensors(), **case.options()), ids_of_rows(case)
    row_tokens = options.get("row_tokens")
    named = ids if row_tokens is None else row_tokens[ids.clamp(min=0)].masked_fill(ids < 0, -1)
    empty = (ids < 0).all(1)
    assert (tokens[empty] == -1).all() and (log_probs[empty] == MINUS_INFINITY).all()
    if "token_logits" in options:
        targets = options.get("logit_rows", torch.arange(len(tokens))).tolist()
        check_logits(options["token_logits"], logits, named, targets)
    law = Law(logits, named, rows["temperatures"])
    return check_draws(tokens, log_probs, law, numbers_of(rows))
