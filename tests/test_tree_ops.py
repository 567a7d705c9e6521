# SPDX-License-Identifier: Apache-2.0
"""The ops for draft trees against loops over lists in Python, and bit for bit on every backend."""

import math

import pytest
import torch
from backends_under_test import ALL, slow_interpreted
from compare import assert_bitwise
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels import tree_accept, tree_cut, tree_grow_

pytestmark = pytest.mark.backends(*ALL)

INF, NAN = math.inf, math.nan
LOGITS = (0.0, -0.25, -0.5, -3.0, 0.5, INF, -INF, NAN)  # few values, so many costs are equal
COSTS = (0.0, 0.5, 1.0, 2.0, -INF, INF, NAN)


def integers(draw: st.DrawFn, low: int, high: int, *shape: int) -> Tensor:
    """Draw int64 numbers in [low, high)."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    return torch.randint(low, high, shape, generator=rng)


def among(draw: st.DrawFn, values: tuple[float, ...], *shape: int) -> Tensor:
    return torch.tensor(values)[integers(draw, 0, len(values), *shape)]


def float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def cheapest(costs: list[float], count: int) -> list[int]:
    """Return the indices of the smallest costs; between equal ones the first."""
    return sorted(range(len(costs)), key=lambda i: (costs[i], i))[:count]


def new_pool(texts: int, places: int) -> list[Tensor]:
    """Return a pool of nonsense, which shows what an op leaves unwritten."""
    shape = (texts, places)
    return [torch.full(shape, -70), torch.full(shape, -71), torch.full(shape, -72.0)]


@given(data=st.data())
def test_levels_of_growing_trees(data: st.DataObject) -> None:
    """Each level's candidates and the next frontier; a frontier of no nodes, NaN and infinities."""
    draw = data.draw
    texts, answers, width = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 9)),
    )
    frontier, begin = None, 0
    pool = new_pool(texts, draw(st.integers(1, 3)) * width * answers + answers + 2)
    while begin + (1 if frontier is None else frontier.size(1)) * answers <= pool[0].size(1):
        w = 1 if frontier is None else frontier.size(1)
        logits = among(draw, LOGITS, texts * w, answers)
        logsumexp = among(draw, LOGITS, texts * w)
        token_ids = integers(draw, -1, 50, texts * w, answers)
        before = [tensor.clone() for tensor in pool]
        nodes, tokens, rows = tree_grow_(
            *pool, logits, token_ids, logsumexp, width, begin=begin, frontier=frontier
        )
        count = w * answers
        assert nodes.shape == tokens.shape == rows.shape == (texts, min(width, count))
        for text in range(texts):
            costs = []
            for row in range(w):
                place = -1 if frontier is None else int(frontier[text, row])
                start = 0.0 if frontier is None else INF
                start = float(before[2][text, place]) if place >= 0 else start
                for answer in range(answers):
                    i = text * w + row, answer
                    step = float32(float(logsumexp[i[0]]) - float(logits[i]))
                    cost = float32(start + (step if step > 0 or step != step else 0.0))
                    costs.append(INF if cost != cost else cost)
                    at = begin + row * answers + answer
                    assert pool[0][text, at] == token_ids[i]
                    assert pool[1][text, at] == place
                    assert pool[2][text, at] == costs[-1]
            best = cheapest(costs, width)
            assert nodes[text].tolist() == [begin + i for i in best]
            assert rows[text].tolist() == [i // answers for i in best]
            own = token_ids.view(texts, -1)[text]
            assert tokens[text].tolist() == own[best].tolist()
        for now, old in zip(pool, before, strict=True):
            assert_bitwise(now[:, :begin], old[:, :begin])
            assert_bitwise(now[:, begin + count :], old[:, begin + count :])
        frontier, begin = nodes, begin + count
        if draw(st.booleans()):
            frontier[draw(st.integers(0, texts - 1)), -1] = -1


def cut(
    root: int, tokens: list[int], parents: list[int], costs: list[float], size: int
) -> list[tuple[int, int]]:
    """Return token and parent of each node of a text's tree."""
    costs = [INF if cost != cost else cost for cost in costs]
    chosen = sorted(i for i in cheapest(costs, size) if costs[i] != INF)
    nodes = {place: node for node, place in enumerate(chosen, start=1)}
    found = [(root, 0)]
    for place in chosen:
        parent = parents[place]
        found.append((tokens[place], nodes.get(parent, 0) if parent < place else 0))
    return found


@pytest.mark.parametrize("sound", [True, False])
@given(data=st.data())
def test_the_best_of_a_pool(sound: bool, data: st.DataObject) -> None:
    """Sound pools as they grow, with many equal costs, and pools of any numbers."""
    draw = data.draw
    texts, places = draw(st.integers(1, 3)), draw(st.sampled_from((0, 1, 2, 9, 33, 70)))
    size = draw(st.integers(1, 80))
    tokens = integers(draw, 0, 50, texts, places)
    parents, costs = tokens.new_full((texts, places), -1), among(draw, COSTS, texts, places)
    if places:
        bound = torch.arange(places) if sound else torch.full((places,), places)
        parents = integers(draw, 0, 2**40, texts, places) % (bound + 1) - 1
    if sound:
        for place in range(places):
            above = parents[:, place]
            start = costs.gather(1, above.clamp(min=0)[:, None])[:, 0].where(above >= 0, 0.0)
            costs[:, place] = start + costs[:, place].abs()
    roots = integers(draw, 0, 50, texts)
    results = tree_cut(roots, tokens, parents, costs, size)
    count = min(size, places) + 1
    assert [tuple(result.shape) for result in results] == [(texts, count)] * 3 + [
        (texts, count, count)
    ]
    for text in range(texts):
        found = cut(
            int(roots[text]),
            tokens[text].tolist(),
            parents[text].tolist(),
            costs[text].tolist(),
            size,
        )
        found += [(-1, 0)] * (count - len(found))
        assert list(zip(*(r[text].tolist() for r in results[:2]), strict=True)) == found
        for node in range(count):
            path, at = {node}, node
            while at:
                at = found[at][1]
                path.add(at)
            assert results[2][text, node] == len(path) - 1
            assert set(results[3][text, node].nonzero().flatten().tolist()) == path


@pytest.mark.parametrize(("places", "size"), [(1112, 255), (400, 1100), slow_interpreted(5000, 60)])
def test_large_pools(places: int, size: int) -> None:
    """More places than a block has threads, and a chain as deep as the pool."""
    rng = torch.Generator().manual_seed(places)
    parents = torch.arange(places)[None] - 1
    costs = torch.arange(places)[None].float()
    if size < places:
        parents = (torch.rand(places, generator=rng) * torch.arange(1, places + 1)).long()[None] - 1
        costs = torch.randint(0, 9, (1, places), generator=rng).float()
    tokens = torch.randint(0, 2**40, (1, places), generator=rng)
    found = tree_cut(torch.tensor([7]), tokens, parents, costs, size)
    want = cut(7, tokens[0].tolist(), parents[0].tolist(), costs[0].tolist(), size)
    assert list(zip(*(r[0].tolist() for r in found[:2]), strict=True)) == want
    if size >= places:
        nodes = torch.arange(places + 1)[None]
        assert_bitwise(found[2], nodes)
        assert_bitwise(found[3], nodes[:, None] <= nodes[:, :, None])
    logits, ids = -costs.view(-1, 8), tokens.view(-1, 8)
    pool = new_pool(1, places + 3)
    pool[2][0, 0] = 0.25
    frontier = torch.zeros(1, len(logits), dtype=torch.int64)
    level = (logits, ids, torch.zeros(len(logits)), 120)
    nodes, best_tokens, rows = tree_grow_(*pool, *level, begin=2, frontier=frontier)
    best = cheapest(costs[0].tolist(), 120)
    assert nodes[0].tolist() == [2 + i for i in best]
    assert best_tokens[0].tolist() == tokens[0, best].tolist()
    assert rows[0].tolist() == [i // 8 for i in best]
    assert_bitwise(pool[2][:, 2 : places + 2], costs + 0.25)


def accept(
    tokens: list[int], parents: list[int], chosen: list[int], depth: int
) -> tuple[list[int], int]:
    """Return the nodes of the path that the target chose, from the root on."""
    paths = {0: [0]}
    for node in range(1, len(tokens)):
        above = paths.get(parents[node]) if parents[node] < node else None
        if above and len(above) <= depth and tokens[node] == chosen[parents[node]]:
            paths[node] = [*above, node]
    leaf = max(paths, key=lambda node: (len(paths[node]), -node))
    return paths[leaf], leaf


@pytest.mark.parametrize("sound", [True, False])
@given(data=st.data())
def test_the_path_that_the_target_chose(sound: bool, data: st.DataObject) -> None:
    """Trees whose tokens often agree, twins among them, and parents of any number."""
    draw = data.draw
    texts, nodes = draw(st.integers(1, 3)), draw(st.sampled_from((1, 2, 7, 33, 70)))
    depth = draw(st.integers(0, 9))
    tokens, chosen = integers(draw, -1, 3, texts, nodes), integers(draw, -2, 3, texts, nodes)
    bound = torch.arange(nodes).clamp(min=1) if sound else torch.full((nodes,), nodes + 1)
    parents = integers(draw, 0, 2**40, texts, nodes) % bound - (0 if sound else 1)
    paths, path_tokens, node_tokens, counts, leaves = tree_accept(tokens, parents, chosen, depth)
    length = min(depth, nodes - 1) + 1
    assert paths.shape == path_tokens.shape == (texts, length)
    for text in range(texts):
        asked = chosen[text].tolist()
        path, leaf = accept(tokens[text].tolist(), parents[text].tolist(), asked, depth)
        pads = length - len(path)
        assert paths[text].tolist() == path + [0] * pads
        assert path_tokens[text].tolist() == [asked[node] for node in path] + [-1] * pads
        on_path = [asked[node] if node in path else -1 for node in range(nodes)]
        assert node_tokens[text].tolist() == on_path
        assert (int(counts[text]), int(leaves[text])) == (len(path), leaf)


def test_no_texts() -> None:
    pool = new_pool(0, 9)
    logits, ids = torch.empty(0, 3), torch.empty(0, 3, dtype=torch.int64)
    grown = tree_grow_(*pool, logits, ids, torch.empty(0), 2)
    assert [result.shape for result in grown] == [(0, 2)] * 3
    found = tree_cut(ids[:, 0], *pool, 4)
    assert [result.shape for result in found] == [(0, 5)] * 3 + [(0, 5, 5)]
    accepted = tree_accept(found[0], found[1], found[0], 2)
    assert [result.shape for result in accepted] == [(0, 3), (0, 3), (0, 5), (0,), (0,)]


def test_the_largest_depth() -> None:
    """No kernel adds to it, or allocates that much."""
    nodes = torch.arange(4)[None]
    found = tree_accept(nodes, (nodes - 1).clamp(min=0), nodes + 1, 2**63 - 1)
    assert found[0].tolist() == [[0, 1, 2, 3]]
    assert found[1].tolist() == [[1, 2, 3, 4]]
