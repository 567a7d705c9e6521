# SPDX-License-Identifier: Apache-2.0
"""tree_accept: the longest path from the root on which every token is the target's.

One program a text. Each node walks up to the root, as long as the tokens agree; the deepest node
that arrives is the leaf. Then the whole program walks up from the leaf. A walk only goes to earlier
nodes, so it ends whatever the parents are.
"""

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device_of

BLOCK = 128  # nodes at once: one for each thread of four warps, and a usual tree in one round


@triton.jit(do_not_specialize=["nodes", "length"])
def accept_kernel(
    tokens,  # int64 [B, n]
    parents,  # int64 [B, n]
    chosen,  # int64 [B, n]
    paths,  # int64 [B, m]
    path_tokens,  # int64 [B, m]
    node_tokens,  # int64 [B, n]
    counts,  # int64 [B]
    leaves,  # int64 [B]
    nodes,  # n
    length,  # m: the most nodes on a path
    BLOCK: tl.constexpr,
):
    text = tl.program_id(0).to(tl.int64)
    tokens += text * nodes
    parents += text * nodes
    chosen += text * nodes
    # Of accepted nodes the largest depth * n + (n - 1 - node): the deepest, the first of equals.
    best = text * 0
    for first in range(0, nodes, BLOCK):
        at = first + tl.arange(0, BLOCK)
        node = tl.where(at < nodes, at, -1).to(tl.int64)  # -1: not accepted
        depth = tl.zeros((BLOCK,), tl.int64)
        steps = 1
        while (tl.max(node, 0) > 0) & (steps < length):
            below = node > 0
            parent = tl.load(parents + node, mask=below, other=-1)
            below = below & (parent >= 0) & (parent < node)
            token = tl.load(tokens + node, mask=below, other=0)
            agree = below & (token == tl.load(chosen + parent, mask=below, other=0))
            depth += agree.to(tl.int64)
            node = tl.where(agree, parent, tl.where(node == 0, 0, -1))
            steps += 1
        key = depth * nodes + (nodes - 1 - at)
        best = tl.maximum(best, tl.max(tl.where(node == 0, key, 0), 0))
    depth = best // nodes
    leaf = nodes - 1 - best % nodes
    tl.store(counts + text, depth + 1)
    tl.store(leaves + text, leaf)

    for first in range(0, nodes, BLOCK):
        at = first + tl.arange(0, BLOCK)  # places on the path, and nodes
        node = leaf
        place = depth
        path = tl.zeros((BLOCK,), tl.int64)
        passed = at < 0
        while place >= 0:
            path = tl.where(at == place, node, path)
            passed = passed | (at == node)
            place -= 1
            node = tl.load(parents + node, mask=place >= 0, other=0)
        token = tl.load(chosen + path, mask=at <= depth, other=-1)
        tl.store(paths + text * length + at, path, mask=at < length)
        tl.store(path_tokens + text * length + at, token, mask=at < length)
        token = tl.load(chosen + at, mask=passed, other=-1)
        tl.store(node_tokens + text * nodes + at, token, mask=at < nodes)


def tree_accept(
    tokens: Tensor, parents: Tensor, chosen: Tensor, depth: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute :func:`microspec_kernels.tree_accept` in Triton, without its checks."""
    texts, nodes = tokens.shape
    length = min(depth + 1, nodes)
    paths, path_tokens = (tokens.new_empty((texts, length)) for _ in range(2))
    node_tokens = tokens.new_empty((texts, nodes))
    counts, leaves = (tokens.new_empty((texts,)) for _ in range(2))
    if texts:
        with on_device_of(tokens):
            accept_kernel[(texts,)](
                tokens, parents, chosen, paths, path_tokens, node_tokens, counts, leaves,
                nodes, length, BLOCK=BLOCK, num_warps=4,
            )  # fmt: skip
    return paths, path_tokens, node_tokens, counts, leaves
