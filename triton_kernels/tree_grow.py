# SPDX-License-Identifier: Apache-2.0
"""tree_grow_: the candidates of a level enter the pool, and the best are the next frontier.

A candidate's rank is the number of candidates that come before it; every program computes the
costs of all of them anew. So programs need nothing of each other: they read places of the pool
before ``begin`` only, and write the others.
"""

import triton
import triton.language as tl
from torch import Tensor

from .common import INTERPRETED, on_device_of

# Candidates of a program, and others that they are compared with at once: 16 pairs for each thread
# of four warps; with 32 Triton 3.9 spills on sm_80. A level of 100 candidates takes seven programs
# a text, of one round each. Large tiles cost Triton's interpreter little more than small ones.
BLOCK, COMPARED = (256, 1024) if INTERPRETED else (16, 128)


@triton.jit
def count_before(costs, at, others, others_at):
    """Return for each of ``costs`` how many others come before: lower ones, equal ones before it.

    NaN among the others comes before nothing.
    """
    equal = (others[:, None] == costs[None, :]) & (others_at[:, None] < at[None, :])
    return tl.sum(((others[:, None] < costs[None, :]) | equal).to(tl.int32), 0)


@triton.jit
def _paths(
    pool_costs, frontier, logits, logsumexp, at, count, answers, begin, ROOT: tl.constexpr
):  # fmt: skip
    """Return the candidates' parents and the costs of their paths; of none -1 and infinity."""
    there = at < count
    row = at // answers
    parent = tl.full(at.shape, -1, tl.int64)
    before = tl.zeros(at.shape, tl.float32)
    if not ROOT:
        parent = tl.load(frontier + row, mask=there, other=-1)
        there = there & (parent >= 0) & (parent < begin)
        parent = tl.where(there, parent, -1)
        before = tl.load(pool_costs + parent, mask=there, other=float("inf"))
    step = tl.load(logsumexp + row, mask=there, other=0.0)
    step -= tl.load(logits + at, mask=there, other=0.0)
    cost = before + tl.where(step < 0, 0.0, step)  # of a step of NaN: NaN
    return parent, tl.where(there & (cost == cost), cost, float("inf"))


@triton.jit(do_not_specialize=["places", "begin", "nodes", "answers", "width"])
def grow_kernel(
    pool_tokens,  # int64 [B, N]
    pool_parents,  # int64 [B, N]
    pool_costs,  # fp32 [B, N]
    frontier,  # int64 [B, w], unless ROOT
    logits,  # fp32 [B w, k]
    token_ids,  # int64 [B w, k]
    logsumexp,  # fp32 [B w]
    next_frontier,  # int64 [B, width]
    next_tokens,  # int64 [B, width]
    next_rows,  # int64 [B, width]
    places,  # N
    begin,
    nodes,  # w
    answers,  # k
    width,  # at most w k
    ROOT: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPARED: tl.constexpr,
):
    count = nodes * answers
    blocks = tl.cdiv(count, BLOCK)
    text = (tl.program_id(0) // blocks).to(tl.int64)
    pool_costs += text * places
    frontier += text * nodes
    logits += text * count
    logsumexp += text * nodes
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    parent, cost = _paths(
        pool_costs, frontier, logits, logsumexp, at, count, answers, begin, ROOT
    )  # fmt: skip
    rank = tl.zeros(at.shape, tl.int32)
    for first in range(0, count, COMPARED):
        other = first + tl.arange(0, COMPARED)
        _, costs = _paths(
            pool_costs, frontier, logits, logsumexp, other, count, answers, begin, ROOT
        )  # fmt: skip
        rank += count_before(cost, at, costs, other)
    there = at < count
    token = tl.load(token_ids + text * count + at, mask=there)
    place = (begin + at).to(tl.int64)
    tl.store(pool_tokens + text * places + place, token, mask=there)
    tl.store(pool_parents + text * places + place, parent, mask=there)
    tl.store(pool_costs + place, cost, mask=there)
    best = there & (rank < width)
    tl.store(next_frontier + text * width + rank, place, mask=best)
    tl.store(next_tokens + text * width + rank, token, mask=best)
    tl.store(next_rows + text * width + rank, (at // answers).to(tl.int64), mask=best)


def tree_grow_(
    pool_tokens: Tensor,
    pool_parents: Tensor,
    pool_costs: Tensor,
    logits: Tensor,
    token_ids: Tensor,
    logsumexp: Tensor,
    width: int,
    *,
    begin: int = 0,
    frontier: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`microspec_kernels.tree_grow_` in Triton, without its checks."""
    texts, places = pool_costs.shape
    nodes, answers = 1 if frontier is None else frontier.size(1), logits.size(1)
    width = min(width, nodes * answers)
    next_frontier, tokens, rows = (pool_tokens.new_empty((texts, width)) for _ in range(3))
    if texts:
        read = (pool_tokens if frontier is None else frontier, logits, token_ids, logsumexp)
        with on_device_of(pool_costs):
            grow_kernel[(texts * triton.cdiv(nodes * answers, BLOCK),)](
                pool_tokens, pool_parents, pool_costs, *read, next_frontier, tokens, rows,
                places, begin, nodes, answers, width,
                ROOT=frontier is None, BLOCK=BLOCK, COMPARED=COMPARED, num_warps=4,
            )  # fmt: skip
    return next_frontier, tokens, rows
