# SPDX-License-Identifier: Apache-2.0
"""EAGLE-2's trees against brute force, which enumerates and scores every path of every text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels.speculative import LMHead
from microspec_kernels.speculative.heads import Dense
from microspec_kernels.speculative.models.cache import KVCache
from microspec_kernels.speculative.stats import Clock
from microspec_kernels.speculative.tree import Tree, TreeShape, grow

Path = tuple[int, ...]
SIZE, ROOT = 8, 5


class PathDraft:
    """A draft whose features depend on a text's whole path in a known way, and on nothing else.

    It checks that a node's ancestor mask names the nodes of its path.
    """

    feature_layers = ()

    def __init__(self, vocab: int, seed: int, sharpness: float, batch: int = 1) -> None:
        random = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(vocab, SIZE, generator=random)
        self.mix = torch.randn(SIZE, SIZE, generator=random)
        self.lm_head = LMHead(sharpness * torch.randn(vocab, SIZE, generator=random))
        self.first = torch.randn(batch, SIZE, generator=random)
        self.levels: list[Tensor] = []
        self.steps = 0

    def new_cache(self) -> KVCache:
        return KVCache(1, torch.device("cpu"), len(self.first))

    def head_input(self, features: Tensor) -> Tensor:
        return features

    def extend(self, tokens: Tensor, hidden: Tensor, counts: Tensor, cache: KVCache) -> Tensor:
        return self.first

    def step(
        self, tokens: Tensor, parents: Tensor, positions: Tensor, mask: Tensor, cache: KVCache
    ) -> Tensor:
        tokens = tokens.clamp(min=0)
        assert torch.equal(positions, cache.ends[:, None] + self.steps)
        self.steps += 1
        self.levels.insert(0, tokens)
        cache.advance(positions.expand_as(tokens))
        features = torch.tanh(parents @ self.mix + self.embedding[tokens])
        # The newest level is first, a path's first token last; the text comes behind all.
        newest_first = torch.cat(self.levels, dim=1).flip(1)
        for text, read in enumerate(newest_first):
            of_tree, of_text = mask[text].split((len(read), cache.room), dim=1)
            assert torch.equal(of_text.sum(1), cache.ends[text].expand(len(of_text)))
            for feature, seen in zip(features[text], of_tree.flip(1), strict=True):
                expected = self.feature(text, tuple(read[seen].tolist()))
                assert torch.allclose(feature, expected, atol=1e-5)
        return features

    def feature(self, text: int, path: Path) -> Tensor:
        """Compute the feature [SIZE] of a path below the text's root from scratch."""
        feature = self.first[text]
        for token in path:
            feature = torch.tanh(feature @ self.mix + self.embedding[token])
        return feature

    def next_log_probs(self, text: int, path: Path) -> list[float]:
        return self.lm_head.logits(self.feature(text, path)).log_softmax(-1).tolist()


def eagle2(
    draft: PathDraft, text: int, vocab: int, shape: TreeShape
) -> tuple[set[Path], dict[Path, float]]:
    """Find the best paths by brute force; return them and the scores of all candidates."""
    scores: dict[Path, float] = {(): 0.0}
    frontier: list[Path] = [()]
    for _ in range(shape.depth):
        level = {}
        for path in frontier:
            answers = draft.next_log_probs(text, path)
            for token in sorted(range(vocab), key=lambda t: -answers[t])[: shape.tree_width]:
                level[(*path, token)] = scores[path] + answers[token]
        frontier = sorted(level, key=lambda p: -level[p])[: shape.tree_width]
        scores |= level
    drafted = sorted((path for path in scores if path), key=lambda p: -scores[p])
    return set(drafted[: shape.size]), scores


def paths(tree: Tree, text: int = 0) -> list[Path]:
    """Return the path to every node, along its parents."""
    found: list[Path] = [()]
    for node in range(1, tree.sizes[text]):
        found.append((*found[tree.parents[text, node]], int(tree.tokens[text, node])))
    return found


def check_shape(tree: Tree) -> None:
    """Check that parents come first, the ancestor mask follows them, and padding is last."""
    for size, tokens, parents, ancestor_mask in zip(
        tree.sizes.tolist(), tree.tokens, tree.parents.tolist(), tree.ancestor_mask, strict=True
    ):
        assert (tokens[:size] >= 0).all() and (tokens[size:] == -1).all()
        assert parents[0] == 0
        for node, parent in enumerate(parents[:size]):
            assert parent < node or node == 0
        for node in range(len(parents)):
            ancestors, at = {node}, node
            while at:
                at = parents[at]
                assert at < size
                ancestors.add(at)
            assert set(ancestor_mask[node].nonzero().flatten().tolist()) == ancestors


def clock() -> Clock:
    return Clock(torch.device("cpu"), {}, on=False)


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(1, 3),
    vocab=st.integers(1, 12),
    depth=st.integers(1, 5),
    tree_width=st.integers(1, 6),
    size=st.integers(1, 40),
    sharpness=st.sampled_from([0.1, 1.0, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_grow_equals_brute_force(
    batch: int, vocab: int, depth: int, tree_width: int, size: int, sharpness: float, seed: int
) -> None:
    draft = PathDraft(vocab, seed, sharpness, batch)
    cache = draft.new_cache()
    lengths = [3 + 2 * text for text in range(batch)]
    cache.lengths += torch.tensor(lengths)
    cache.longest = max(lengths)
    shape = TreeShape(depth, tree_width, size)
    roots = ROOT + torch.arange(batch)
    groups = torch.zeros_like(roots)
    tree = grow(roots, draft.first, groups, draft, cache, Dense(draft.lm_head), shape, clock())
    check_shape(tree)
    assert torch.equal(tree.tokens[:, 0], roots)
    assert cache.lengths.tolist() == lengths and cache.pending == 0, "a guess stays in the cache"
    assert draft.steps == depth - 1, "the last level's features have no use"
    for text in range(batch):
        found = paths(tree, text)[1:]
        assert len(set(found)) == len(found)
        expected, scores = eagle2(draft, text, vocab, shape)
        assert len(found) == len(expected)
        # fp32 may order a near tie differently from the brute force's doubles, so we compare
        # scores.
        for got, want in zip(
            sorted(scores[p] for p in found), sorted(scores[p] for p in expected), strict=True
        ):
            assert abs(got - want) < 1e-4


class Answers:
    """A head with one answer for all rows of a group."""

    follows = False

    def __init__(self, *answers: tuple[list[float], list[int]]) -> None:
        self.num_groups = len(answers)
        self.log_probs = torch.tensor([log_probs for log_probs, _ in answers])
        self.tokens = torch.tensor([tokens for _, tokens in answers])

    def topk(self, hidden: Tensor, k: int, row_groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert hidden.shape == (len(row_groups), SIZE)
        certain = torch.zeros(len(row_groups))
        return self.log_probs[row_groups, :k], self.tokens[row_groups, :k], certain


def grow_with(head: Answers, shape: TreeShape) -> Tree:
    draft = PathDraft(16, 0, 1.0, head.num_groups)
    groups = torch.arange(head.num_groups)
    roots = torch.full_like(groups, ROOT)
    tree = grow(roots, draft.first, groups, draft, draft.new_cache(), head, shape, clock())
    check_shape(tree)
    return tree


NOTHING = -torch.inf
TWO = ([-0.1, -2.5, NOTHING, NOTHING], [3, 7, -1, -1])
ONE = ([0.0, NOTHING, NOTHING, NOTHING], [9, -1, -1, -1])
NONE = ([NOTHING] * 4, [-1] * 4)


def test_padding_never_enters_the_tree() -> None:
    tree = grow_with(Answers(TWO), TreeShape(4, 4, 50))
    # At most four nodes per level expand, with two children each: 2 + 4 + 8 + 8.
    assert tree.sizes.tolist() == [1 + 22] and tree.tokens.shape == (1, 1 + 50)
    assert set(tree.tokens[0, 1:23].tolist()) == {3, 7}


def test_trees_of_several_sizes_side_by_side() -> None:
    """A text with a smaller tree gets padding, and equals the same text alone."""
    shape = TreeShape(4, 4, 50)
    tree = grow_with(Answers(TWO, NONE, ONE), shape)
    assert tree.sizes.tolist() == [23, 1, 5]
    for text, answer in enumerate((TWO, NONE, ONE)):
        alone = grow_with(Answers(answer), shape)
        assert torch.equal(tree.tokens[text], alone.tokens[0])
        assert torch.equal(tree.parents[text], alone.parents[0])
        assert torch.equal(tree.ancestor_mask[text], alone.ancestor_mask[0])


@pytest.mark.parametrize(
    ("log_prob", "token"), [(-torch.inf, 3), (torch.nan, 3), (-torch.inf, -1)], ids=str
)
def test_what_is_no_token_or_has_no_probability_is_no_node(log_prob: float, token: int) -> None:
    answer = ([log_prob] * 4, [token] * 4)
    tree = grow_with(Answers(answer), TreeShape(4, 2, 50))
    padding = tree.tokens.shape[1] - 1
    assert tree.tokens.tolist() == [[ROOT] + [-1] * padding]
    both = grow_with(Answers(answer, ONE), TreeShape(4, 2, 50))
    assert both.sizes.tolist() == [1, 5]


def test_one_certain_token_makes_a_chain() -> None:
    """With one active token every score is 0, so ancestors tie with their descendants."""
    tree = grow_with(Answers(ONE), TreeShape(6, 2, 4))
    assert tree.parents.tolist() == [[0, 0, 1, 2, 3]]


def test_a_probability_rounded_above_one_outranks_no_ancestor() -> None:
    tree = grow_with(Answers(([1e-7, -3.0], [9, 2])), TreeShape(6, 2, 3))
    assert paths(tree)[1:] == [(9,), (9, 9), (9, 9, 9)]
    assert tree.tokens.tolist() == [[ROOT, 9, 9, 9]]
