# SPDX-License-Identifier: Apache-2.0
"""Calls of the tree ops with random pools and trees, sound or of any numbers.

This module imports nothing of the package, because a process with another build of the library uses
it too.
"""

from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]
COSTS = (0.0, 0.25, 0.5, 0.5, 1.0, 3.0, torch.inf, torch.nan)
FAR = (-(2**63), -(2**32), -2, -1, 2**31, 2**32, 2**40, 2**63 - 1)


def among(values: tuple[Any, ...], shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.tensor(values)[torch.randint(len(values), shape, generator=rng)]


def with_far(numbers: Tensor, far: bool, rng: torch.Generator) -> Tensor:
    """Replace a tenth of int64 numbers by ones that are out of range, among them negative ones."""
    if not far:
        return numbers
    out = torch.rand(numbers.shape, generator=rng) < 0.1
    return among(FAR, tuple(numbers.shape), rng).where(out, numbers)


def pool(
    texts: int, places: int, rng: torch.Generator, sound: bool = True, far: bool = False
) -> dict[str, Tensor]:
    """Return pools. Sound: parents come before their children. Far: some are out of range."""
    tokens = torch.randint(1000, (texts, places), generator=rng)
    bound = torch.arange(places) + 1 if sound else torch.full((places,), places + 1)
    parents = torch.randint(2**40, (texts, places), generator=rng) % bound - 1
    costs = among(COSTS, (texts, places), rng)
    for place in range(places if sound else 0):
        above = parents[:, place]
        before = costs.gather(1, above.clamp(min=0)[:, None])[:, 0].where(above >= 0, 0.0)
        costs[:, place] += before
    return {
        "pool_tokens": tokens,
        "pool_parents": with_far(parents, far, rng),
        "pool_costs": costs,
    }


def grow_case(
    seed: int, texts: int, frontier: int, answers: int, width: int, far: bool = False
) -> Arguments:
    """Return a call of tree_grow_; `frontier` = 0: for the roots."""
    rng = torch.Generator().manual_seed(seed)
    begin, count = 2 * frontier + 1, max(1, frontier) * answers
    rows = texts * max(1, frontier)
    nodes = torch.randint(-1, begin, (texts, frontier), generator=rng)
    return {
        **pool(texts, begin + count + 2, rng),
        "logits": -among(COSTS, (rows, answers), rng),
        "token_ids": torch.randint(-1, 1000, (rows, answers), generator=rng),
        "logsumexp": among((0.0, 0.0, 0.5, -torch.inf), (rows,), rng),
        "width": width,
        "begin": begin,
        "frontier": with_far(nodes, far, rng) if frontier else None,
    }


def cut_case(
    seed: int, texts: int, places: int, size: int, sound: bool = True, far: bool = False
) -> Arguments:
    rng = torch.Generator().manual_seed(seed)
    roots = torch.randint(1000, (texts,), generator=rng)
    return {"roots": roots, **pool(texts, places, rng, sound, far), "size": size}


def accept_case(
    seed: int, texts: int, nodes: int, depth: int, sound: bool = True, far: bool = False
) -> Arguments:
    """Return a call whose target often chooses a node's token."""
    rng = torch.Generator().manual_seed(seed)
    bound = torch.arange(nodes).clamp(min=1) if sound else torch.full((nodes,), nodes)
    parents = torch.randint(2**40, (texts, nodes), generator=rng) % bound
    return {
        "tokens": torch.randint(-1, 3, (texts, nodes), generator=rng),
        "parents": with_far(parents, far, rng),
        "chosen": torch.randint(-2, 3, (texts, nodes), generator=rng),
        "depth": depth,
    }


def cases(far: bool = False, sound: bool = True) -> list[tuple[str, Arguments]]:
    """Return small calls of each op: one block or several, one round of a block or more."""
    found: list[tuple[str, Arguments]] = []
    for seed, (texts, frontier, answers, width) in enumerate(
        [(1, 0, 1, 1), (3, 0, 10, 4), (2, 10, 10, 10), (2, 30, 40, 7), (1, 33, 10, 300)]
    ):
        found.append(("tree_grow_", grow_case(seed, texts, frontier, answers, width, far)))
    for seed, (texts, places, size) in enumerate(
        [(1, 0, 3), (1, 1, 1), (3, 33, 70), (2, 510, 60), (1, 1100, 1200)]
    ):
        found.append(("tree_cut", cut_case(seed, texts, places, size, sound, far)))
    for seed, (texts, nodes, depth) in enumerate([(1, 1, 0), (3, 7, 9), (2, 61, 6), (1, 1100, 40)]):
        found.append(("tree_accept", accept_case(seed, texts, nodes, depth, sound, far)))
    return found
