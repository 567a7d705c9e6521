# SPDX-License-Identifier: Apache-2.0
"""tree_cut: the root and the candidates of the smallest costs, as a tree.

1. Choose: a candidate's rank is the number of candidates that come before it; the best are marked.
2. Nodes: a program has some rows and some columns of an ancestor mask. Node i is where the count of
   marks reaches i. From there each row walks up to the root, and sets the columns whose places it
   passes. A walk only goes to earlier places, so it ends whatever the pool holds.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import INTERPRETED, on_device_of
from .tree_grow import BLOCK, COMPARED, count_before

# Rows and columns of an ancestor mask a program, and places whose marks are counted at once: 32
# comparisons for each thread of four warps. A tree of 60 nodes takes four programs.
TILE, SWEPT = (256, 1024) if INTERPRETED else (32, 128)


@triton.jit(do_not_specialize=["places", "size"])
def choose_kernel(
    pool_costs,  # fp32 [B, N]
    chosen,  # int8 [B, N]: marks
    places,  # N
    size,
    BLOCK: tl.constexpr,
    COMPARED: tl.constexpr,
):
    blocks = tl.cdiv(places, BLOCK)
    text = (tl.program_id(0) // blocks).to(tl.int64)
    pool_costs += text * places
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    cost = tl.load(pool_costs + at, mask=at < places, other=float("inf"))
    rank = tl.zeros(at.shape, tl.int32)
    for first in range(0, places, COMPARED):
        other = first + tl.arange(0, COMPARED)
        costs = tl.load(pool_costs + other, mask=other < places, other=float("inf"))
        rank += count_before(cost, at, costs, other)
    best = (rank < size) & (cost < float("inf"))  # NaN is no node
    tl.store(chosen + text * places + at, best.to(tl.int8), mask=at < places)


@triton.jit
def _parents(pool_parents, chosen, place, places):
    """Return the places of the parents; -1, which stands for the root, if there is no other."""
    there = (place >= 0) & (place < places)
    parent = tl.load(pool_parents + place, mask=there, other=-1)
    there = there & (parent >= 0) & (parent < place)
    there = there & (tl.load(chosen + parent, mask=there, other=0) != 0)
    return tl.where(there, parent, -1)


@triton.jit(do_not_specialize=["places", "nodes"])
def nodes_kernel(
    roots,  # int64 [B]
    pool_tokens,  # int64 [B, N]
    pool_parents,  # int64 [B, N]
    chosen,  # int8 [B, N]
    tokens,  # int64 [B, n]
    parents,  # int64 [B, n]
    depths,  # int64 [B, n]
    ancestor_mask,  # bool [B, n, n]
    places,  # N
    nodes,  # n
    TILE: tl.constexpr,
    SWEPT: tl.constexpr,
):
    tiles = tl.cdiv(nodes, TILE)
    text = (tl.program_id(0) // (tiles * tiles)).to(tl.int64)
    pool_parents += text * places
    chosen += text * places
    row = tl.program_id(0) // tiles % tiles * TILE + tl.arange(0, TILE)
    column = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    row_place, column_place = tl.zeros_like(row), tl.zeros_like(column)
    found = 0
    for first in range(0, places, SWEPT):
        place = first + tl.arange(0, SWEPT)
        mark = tl.load(chosen + place, mask=place < places, other=0).to(tl.int32)
        # The last node up to each place. The places where it is less than i are before node i's.
        last = tl.where(place < places, found + tl.cumsum(mark, 0), nodes)
        row_place += tl.sum((last[:, None] < row[None, :]).to(tl.int32), 0)
        column_place += tl.sum((last[:, None] < column[None, :]).to(tl.int32), 0)
        found += tl.sum(mark, 0)
    row_place = tl.where(row == 0, -1, row_place).to(tl.int64)  # of padding: N
    column_place = tl.where(column == 0, -1, column_place).to(tl.int64)

    parent = _parents(pool_parents, chosen, row_place, places)
    is_parent = parent[:, None] == column_place[None, :]
    number = tl.max(tl.where(is_parent, column[None, :], -1), 1)  # -1: not among these columns
    at = text * nodes + row
    tl.store(parents + at, number.to(tl.int64), mask=(row < nodes) & (number >= 0))
    seen = is_parent | (row[:, None] == column[None, :])
    depth = (row > 0).to(tl.int64)
    while tl.max(parent, 0) >= 0:
        depth += (parent >= 0).to(tl.int64)
        parent = _parents(pool_parents, chosen, parent, places)
        seen |= parent[:, None] == column_place[None, :]
    there = (row[:, None] < nodes) & (column[None, :] < nodes)
    tl.store(ancestor_mask + at[:, None] * nodes + column[None, :], seen, mask=there)
    if tl.program_id(0) % tiles == 0:
        node = (row_place >= 0) & (row_place < places)
        token = tl.load(pool_tokens + text * places + row_place, mask=node, other=-1)
        tl.store(tokens + at, tl.where(row == 0, tl.load(roots + text), token), mask=row < nodes)
        tl.store(depths + at, depth, mask=row < nodes)


def tree_cut(
    roots: Tensor, pool_tokens: Tensor, pool_parents: Tensor, pool_costs: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute :func:`microspec_kernels.tree_cut` in Triton, without its checks."""
    texts, places = pool_costs.shape
    size, nodes = min(size, places), min(size, places) + 1
    tokens, parents, depths = (roots.new_empty((texts, nodes)) for _ in range(3))
    mask = roots.new_empty((texts, nodes, nodes), dtype=torch.bool)
    chosen = roots.new_empty((texts, places), dtype=torch.int8)
    with on_device_of(roots):
        if texts and places:
            choose_kernel[(texts * triton.cdiv(places, BLOCK),)](
                pool_costs, chosen, places, size, BLOCK=BLOCK, COMPARED=COMPARED, num_warps=4
            )
        if texts:
            nodes_kernel[(texts * triton.cdiv(nodes, TILE) ** 2,)](
                roots, pool_tokens, pool_parents, chosen, tokens, parents, depths, mask,
                places, nodes, TILE=TILE, SWEPT=SWEPT, num_warps=4,
            )  # fmt: skip
    return tokens, parents, depths, mask
