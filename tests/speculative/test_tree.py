"""EAGLE-2's tree against brute force: every path enumerated and scored by itself."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels.speculative.cache import KVCache
from microspec_kernels.speculative.heads import Dense
from microspec_kernels.speculative.stats import Clock
from microspec_kernels.speculative.tree import Tree, TreeShape, best_nodes, grow

Path = tuple[int, ...]
SIZE, ROOT = 8, 5


class PathDraft:
    """Features that depend on the whole path in a known way, and on nothing else.

    It checks what it is given: a node's lineage must name the nodes of its own path.
    """

    def __init__(self, vocab: int, seed: int, sharpness: float) -> None:
        random = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(vocab, SIZE, generator=random)
        self.mix = torch.randn(SIZE, SIZE, generator=random)
        self.head_weight = sharpness * torch.randn(vocab, SIZE, generator=random)
        self.head_bias = None
        self.first = torch.randn(1, SIZE, generator=random)
        self.read: list[int] = []
        self.steps = 0

    def new_cache(self) -> KVCache:
        return KVCache(1)

    def extend(self, tokens: Tensor, hidden: Tensor, cache: KVCache) -> Tensor:
        return self.first

    def step(self, tokens: Tensor, parents: Tensor, lineage: Tensor, cache: KVCache) -> Tensor:
        self.steps += 1
        self.read += tokens.tolist()
        cache.advance(len(tokens))
        features = torch.tanh(parents @ self.mix + self.embedding[tokens])
        for feature, seen in zip(features, lineage, strict=True):
            path = tuple(token for token, is_seen in zip(self.read, seen, strict=True) if is_seen)
            assert torch.allclose(feature, self.feature(path)[0], atol=1e-5)
        return features

    def feature(self, path: Path) -> Tensor:
        """The feature after a path below the root, [1, SIZE], from the beginning."""
        feature = self.first
        for token in path:
            feature = torch.tanh(feature @ self.mix + self.embedding[token])
        return feature

    def next_log_probs(self, path: Path) -> list[float]:
        return (self.feature(path) @ self.head_weight.T).log_softmax(-1)[0].tolist()


def eagle2(draft: PathDraft, vocab: int, shape: TreeShape) -> tuple[set[Path], dict[Path, float]]:
    """The best paths by brute force, and the scores of all that were considered."""
    scores: dict[Path, float] = {(): 0.0}
    frontier: list[Path] = [()]
    for _ in range(shape.depth):
        level = {}
        for path in frontier:
            answers = draft.next_log_probs(path)
            for token in sorted(range(vocab), key=lambda t: -answers[t])[: shape.top_k]:
                level[(*path, token)] = scores[path] + answers[token]
        frontier = sorted(level, key=lambda p: -level[p])[: shape.top_k]
        scores |= level
    drafted = sorted((path for path in scores if path), key=lambda p: -scores[p])
    return set(drafted[: shape.size]), scores


def paths(tree: Tree) -> list[Path]:
    """The path to every node, along its parents."""
    found: list[Path] = [()]
    for node in range(1, len(tree.tokens)):
        found.append((*found[tree.parents[node]], int(tree.tokens[node])))
    return found


def check_shape(tree: Tree) -> None:
    """Parents first, and the lineage is what the parents say."""
    parents = tree.parents.tolist()
    assert parents[0] == 0
    for node, parent in enumerate(parents[1:], start=1):
        assert parent < node
    for node in range(len(parents)):
        ancestors, at = {node}, node
        while at:
            at = parents[at]
            ancestors.add(at)
        assert set(tree.lineage[node].nonzero().flatten().tolist()) == ancestors


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(1, 12),
    depth=st.integers(1, 5),
    top_k=st.integers(1, 6),
    size=st.integers(1, 40),
    sharpness=st.sampled_from([0.1, 1.0, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_grow_equals_brute_force(
    vocab: int, depth: int, top_k: int, size: int, sharpness: float, seed: int
) -> None:
    draft = PathDraft(vocab, seed, sharpness)
    cache = draft.new_cache()
    cache.advance(3)
    shape = TreeShape(depth, top_k, size)
    head = Dense(draft.head_weight, None)
    tree = grow(
        torch.tensor([ROOT]), draft.first, draft, cache, head, shape, Clock(torch.device("cpu"), {})
    )
    check_shape(tree)
    assert int(tree.tokens[0]) == ROOT
    assert cache.length == 3, "the draft's guesses stay in its cache"
    assert draft.steps == depth - 1, "the last level's features have no use"
    found = paths(tree)[1:]
    assert len(set(found)) == len(found)
    expected, scores = eagle2(draft, vocab, shape)
    assert len(found) == len(expected)
    # fp32 may order a near tie otherwise than the brute force's doubles: compare by score.
    for got, want in zip(
        sorted(scores[p] for p in found), sorted(scores[p] for p in expected), strict=True
    ):
        assert abs(got - want) < 1e-4


class Answers:
    """A head that gives the same answer to every row."""

    follows = False

    def __init__(self, log_probs: list[float], tokens: list[int]) -> None:
        self.log_probs, self.tokens = torch.tensor(log_probs), torch.tensor(tokens)

    def topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        rows = len(hidden)
        return self.log_probs[:k].expand(rows, -1), self.tokens[:k].expand(rows, -1)

    def observe(self, tokens: Tensor) -> None: ...

    def contains(self, tokens: Tensor) -> Tensor:
        return torch.isin(tokens, self.tokens)

    def active(self) -> int:
        return len(self.tokens)


def grow_with(head: Answers, shape: TreeShape) -> Tree:
    draft = PathDraft(16, 0, 1.0)
    clock = Clock(torch.device("cpu"), {})
    root = torch.tensor([ROOT])
    return grow(root, draft.first, draft, draft.new_cache(), head, shape, clock)


def test_padding_never_enters_the_tree() -> None:
    nothing = -torch.inf
    shape = TreeShape(4, 4, 50)
    tree = grow_with(Answers([-0.1, -2.5, nothing, nothing], [3, 7, -1, -1]), shape)
    check_shape(tree)
    # Two children for each of at most four expanded nodes a level: 2 + 4 + 8 + 8.
    assert len(tree.tokens) == 1 + 22
    assert set(tree.tokens[1:].tolist()) == {3, 7}


def test_what_is_no_token_or_has_no_probability_is_no_node() -> None:
    for answer, token in ((-torch.inf, 3), (torch.nan, 3), (-0.5, -1)):
        tree = grow_with(Answers([answer, answer], [token, token]), TreeShape(4, 2, 50))
        assert tree.tokens.tolist() == [ROOT]
        assert tree.lineage.tolist() == [[True]]
        assert tree.walk([3]) == [0]


def test_one_certain_token_makes_a_chain() -> None:
    """A vocabulary of one: every score is 0, so ancestors tie with their descendants."""
    tree = grow_with(Answers([0.0, -torch.inf], [9, -1]), TreeShape(6, 2, 4))
    assert tree.parents.tolist() == [0, 0, 1, 2, 3]
    check_shape(tree)


def test_a_probability_rounded_above_one_outranks_no_ancestor() -> None:
    tree = grow_with(Answers([1e-7, -3.0], [9, 2]), TreeShape(6, 2, 3))
    assert paths(tree)[1:] == [(9,), (9, 9), (9, 9, 9)]
    assert tree.tokens.tolist() == [ROOT, 9, 9, 9]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), count=st.integers(1, 30), size=st.integers(1, 40))
def test_best_nodes_are_the_best_and_a_tree(data: st.DataObject, count: int, size: int) -> None:
    """Over arbitrary trees, with scores that tie all the time."""
    parents = [0] + [data.draw(st.integers(0, node)) for node in range(count)]
    steps = data.draw(st.lists(st.sampled_from([0.0, -0.5, -1.0]), min_size=count, max_size=count))
    scores = [0.0]
    for parent, step in zip(parents[1:], steps, strict=True):
        scores.append(scores[parent] + step)
    tree = best_nodes(
        torch.arange(100, 101 + count), torch.tensor(parents), torch.tensor(scores), size
    )
    check_shape(tree)
    chosen = [token - 100 for token in tree.tokens.tolist()]
    assert chosen[0] == 0
    assert len(chosen) == 1 + min(size, count)
    left_out = set(range(count + 1)) - set(chosen)
    assert all(scores[node] >= scores[other] for node in chosen for other in left_out)
    assert [chosen[parent] for parent in tree.parents] == [parents[node] for node in chosen]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), count=st.integers(0, 12))
def test_walk_follows_the_choices(data: st.DataObject, count: int) -> None:
    parents = [0] + [data.draw(st.integers(0, node)) for node in range(count)]
    tokens: list[int] = [ROOT]
    for node in range(1, count + 1):
        siblings = [t for t, p in zip(tokens[1:], parents[1:], strict=False) if p == parents[node]]
        tokens.append(data.draw(st.integers(0, 30).filter(lambda t, s=siblings: t not in s)))
    choices = [data.draw(st.sampled_from([*tokens, 31])) for _ in tokens]
    tree = best_nodes(
        torch.tensor(tokens), torch.tensor(parents), -torch.arange(count + 1.0), count + 1
    )
    path = tree.walk(choices)
    assert path[0] == 0
    for before, after in pairwise(path):
        assert parents[after] == before
        assert tokens[after] == choices[before]
    children = [node for node in range(1, count + 1) if parents[node] == path[-1]]
    assert choices[path[-1]] not in [tokens[node] for node in children]
