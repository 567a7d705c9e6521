# SPDX-License-Identifier: Apache-2.0
"""What do the ops for draft trees cost, beside the same trees by PyTorch's own ops?

python -m bench.ops.tree [--quick] [--device cpu|cuda] [--out DIR]

The tree is EAGLE-2's: six levels, ten nodes a level with ten candidates each, and the best 60. The
kernels read and write kilobytes, so a GPU's floor is the launches: one of ours, and one for each of
PyTorch's calls. On a CPU the calls are made from Python, as the loop makes them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import microspec_kernels as mk
from bench.harness import options
from bench.harness.cuda_graphs import capture, time_replays
from bench.harness.sizes import K_BEST, QUICK_SHORT_ROUNDS, ROUNDS, SHORT_ROUNDS
from microspec_kernels.speculative.tree import TreeShape, new_pool
from microspec_kernels.timing import time_arms

from . import tree_peers

SHAPE = TreeShape(depth=6, tree_width=K_BEST, size=60)
TEXTS = (1, 8)
CALLS = 64  # of a graph
VOCAB_SIZE = 128256

Arms = dict[str, Callable[[], tuple[Tensor, ...]]]


def arms(texts: int, device: str) -> Arms:
    """Return a level, a cut and an acceptance, by our ops and by PyTorch's; both agree."""
    pool = new_pool(texts, SHAPE, K_BEST, torch.device(device))
    frontier, begin = None, 0
    for _ in range(SHAPE.depth):
        w = 1 if frontier is None else K_BEST
        logits = torch.randn(texts * w, K_BEST, device=device).sort(descending=True).values
        token_ids = torch.randint(VOCAB_SIZE, logits.shape, device=device)
        answers = logits, token_ids, logits.logsumexp(1)
        last, start = frontier, begin
        frontier = mk.tree_grow_(*pool, *answers, K_BEST, begin=begin, frontier=frontier)[0]
        begin += w * K_BEST
    assert last is not None
    before = pool[2].gather(1, last)
    grow = partial(mk.tree_grow_, *pool, *answers, K_BEST, begin=start, frontier=last)
    level = partial(tree_peers.level, before, *answers, K_BEST)

    roots = torch.randint(VOCAB_SIZE, (texts,), device=device)
    cut = partial(mk.tree_cut, roots, *pool, SHAPE.size)
    tree = tree_peers_pool(roots, *pool)
    peers_cut = partial(tree_peers.cut, *tree, SHAPE.size, SHAPE.depth)
    tokens, parents, depths, mask = cut()
    chosen = torch.full_like(tokens, -1).scatter(1, parents, tokens)  # a child of each node
    accept = partial(mk.tree_accept, tokens, parents, chosen, SHAPE.depth)
    nodes = tokens, parents, depths, mask, chosen
    peers_accept = partial(tree_peers.accept, *nodes, SHAPE.depth)

    agree((grow()[0] - start, grow()[1], grow()[2]), level()[2:])
    agree(cut(), peers_cut())
    agree(accept(), peers_accept())
    assert int(accept()[3].min()) > 1, "nothing is accepted"
    return {
        "tree_grow_, a level": grow,
        "PyTorch: a level": level,
        "tree_cut": cut,
        "PyTorch: the cut": peers_cut,
        "tree_accept": accept,
        "PyTorch: the acceptance": peers_accept,
    }


def tree_peers_pool(
    roots: Tensor, tokens: Tensor, parents: Tensor, costs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pools as `tree_peers.cut` takes them: the root first, padding last."""
    none = torch.zeros_like(roots)[:, None]
    tokens = torch.cat((roots[:, None], tokens, none - 1), dim=1)
    parents = torch.cat((none, parents + 1, none), dim=1)
    return tokens, parents, torch.cat((none.float(), costs), dim=1)


def agree(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other), "the ops and PyTorch's calls make different trees"


def on_cpu(quick: bool) -> list[dict[str, Any]]:
    """Time calls from Python."""
    rounds = QUICK_SHORT_ROUNDS if quick else SHORT_ROUNDS
    rows = []
    for texts in TEXTS:
        times = time_arms(arms(texts, "cpu"), rounds)
        rows += [{"texts": texts, "arm": name, **time.in_us()} for name, time in times.items()]
    return rows


def on_gpu(quick: bool = False, rounds: int = ROUNDS, device: str = "cuda") -> list[dict[str, Any]]:
    """Time replays of graphs."""
    rows = []
    for texts in TEXTS[:1] if quick else TEXTS:
        replays = {name: capture(call, CALLS) for name, call in arms(texts, device).items()}
        times = time_replays(replays, rounds)
        rows += [{"texts": texts, "arm": name, **time.in_us()} for name, time in times.items()]
    return rows


if __name__ == "__main__":
    options.run(__doc__, "tree", on_cpu, on_gpu)
