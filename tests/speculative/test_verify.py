# SPDX-License-Identifier: Apache-2.0
"""Accepted tokens of trees and of chains, against the rules written row by row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels.speculative import CausalModel, Dense, ModelDraft, Sampling, generate
from microspec_kernels.speculative.sampling import draw
from microspec_kernels.speculative.tree import Tree
from microspec_kernels.speculative.verify import accept, accepted, follow, residual, verify_chain

from .models import prompt, tiny

# Any node may have the root's token; no node has OTHER.
ROOT, TOKENS, OTHER = 9, range(14), 30


@st.composite
def small_tree(draw_one: st.DrawFn) -> tuple[list[int], list[int]]:
    """Return parents and tokens; siblings differ, cousins may be equal."""
    count = draw_one(st.integers(0, 12))
    parents = [0] + [draw_one(st.integers(0, node)) for node in range(count)]
    tokens = [ROOT]
    for node in range(1, count + 1):
        taken = {t for t, p in zip(tokens[1:], parents[1:node], strict=True) if p == parents[node]}
        tokens.append(draw_one(st.sampled_from([t for t in TOKENS if t not in taken])))
    return parents, tokens


@given(trees=st.lists(small_tree(), min_size=1, max_size=4), data=st.data())
def test_follow_walks_as_far_as_the_choices_are_nodes(
    trees: list[tuple[list[int], list[int]]], data: st.DataObject
) -> None:
    width = max(len(parents) for parents, _ in trees)
    parents = torch.tensor([p + [0] * (width - len(p)) for p, _ in trees])
    tokens = torch.tensor([t + [-1] * (width - len(t)) for _, t in trees])
    choice = st.sampled_from([*TOKENS, OTHER])
    choices = torch.tensor([[data.draw(choice) for _ in range(width)] for _ in trees])
    asked: list[tuple[int, int]] = []

    def choose(nodes: Tensor, depths: Tensor) -> Tensor:
        asked.extend(enumerate(nodes.tolist()))
        assert (depths + 1).tolist() == tree.ancestor_mask[texts, nodes].sum(1).tolist()
        return choices[texts, nodes]

    texts, depth = torch.arange(len(trees)), 12
    mask = ancestors(parents)
    tree = Tree(tokens, parents, mask.sum(2) - 1, mask)
    found = follow(tree, choose, depth)
    at_once = accept(tree, choices, depth)
    for one, other in zip(found, at_once, strict=True):
        assert torch.equal(one, other), "all choices at once give another path"
    on_paths = []
    for text, (own_parents, own_tokens) in enumerate(trees):
        edges = enumerate(zip(own_parents[1:], own_tokens[1:], strict=True), start=1)
        child = {edge: node for node, edge in edges}
        path = [0]
        while (node := child.get((path[-1], int(choices[text, path[-1]])))) is not None:
            path.append(node)
        pads = found.paths.shape[1] - len(path)
        assert found.paths[text].tolist() == path + [0] * pads
        assert found.tokens[text].tolist() == choices[text, path].tolist() + [-1] * pads
        expected = [int(choices[text, node]) if node in path else -1 for node in range(width)]
        assert found.chosen[text].tolist() == expected
        assert int(found.counts[text]) == len(path)
        on_paths += [(text, node) for node in path]
    assert set(asked) == set(on_paths), "a token was chosen that is not emitted"


def ancestors(parents: Tensor) -> Tensor:
    """Return the ancestor mask [B, n, n] of trees with these parents [B, n]."""
    mask = torch.eye(parents.shape[1], dtype=torch.bool).repeat(len(parents), 1, 1)
    for text, row in enumerate(parents.tolist()):
        for node, parent in enumerate(row):
            mask[text, node] |= mask[text, parent]
    return mask


def distributions(*shape: int, seed: int) -> Tensor:
    """Draw random distributions fp64 [..., V] with zeros in them."""
    random = torch.Generator().manual_seed(seed)
    shares = torch.rand(shape, generator=random, dtype=torch.float64)
    shares *= torch.rand(shape, generator=random) < 0.7
    shares[..., 0] += 0.01
    return shares / shares.sum(-1, keepdim=True)


@given(
    batch=st.integers(1, 5), depth=st.integers(0, 4), vocab=st.integers(1, 9),
    seed=st.integers(0, 2**31), alike=st.booleans(),
)  # fmt: skip
def test_chains_row_by_row(batch: int, depth: int, vocab: int, seed: int, alike: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    p, q = (
        distributions(batch, depth + 1, vocab, seed=seed),
        distributions(batch, depth, vocab, seed=seed + 1),
    )
    if alike:
        q = p[:, :-1].clone()
    accept, final, by = (
        torch.rand(batch, n, generator=random, dtype=torch.float64)
        for n in (depth, depth + 1, depth)
    )
    drafted = draw(q, by)
    none = torch.rand(batch, depth, generator=random) < 0.1
    drafted[none], q[none] = -1, 0
    found = verify_chain(p, q, drafted, accept, final)
    for row in range(batch):
        expected = []
        for level in range(depth + 1):
            rest = p[row, level]
            if level < depth:
                token = int(drafted[row, level])
                if token >= 0 and accept[row, level] < p[row, level, token] / q[row, level, token]:
                    expected.append(token)
                    continue
                rest = (rest - q[row, level]).clamp(min=0)
            expected.append(int(draw(rest / rest.sum(), final[row, level])))
            break
        count = len(expected)
        pads = [-1] * (depth + 1 - count)
        assert found.tokens[row].tolist() == expected + pads
        assert found.paths[row].tolist() == list(range(count)) + [0] * len(pads)
        assert torch.equal(found.chosen, found.tokens), "a chain's path is its first nodes"
        assert int(found.counts[row]) == count
        assert all(p[row, at, token] > 0 for at, token in enumerate(expected))


def test_acceptance_at_the_edges() -> None:
    tiny = 5e-324
    p = torch.tensor([0.5, 0.5, 0.0, 1.0, tiny, 0.3], dtype=torch.float64)
    q = torch.tensor([0.5, 1.0, 0.5, tiny, 1.0, 0.0], dtype=torch.float64)
    largest = torch.full_like(p, 1 - 2.0**-53)
    assert accepted(p, q, largest).tolist() == [True, False, False, True, False, False]
    assert accepted(p, q, largest * 0).tolist() == [True, True, False, True, True, False]


def test_the_residual_of_equal_distributions_is_the_targets() -> None:
    p = torch.tensor([[0.2, 0.8], [0.2, 0.8], [0.2, 0.8]])
    q = torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.0, 0.0]])
    expected = torch.tensor([[0.2, 0.8], [0.0, 0.3], [0.2, 0.8]])
    torch.testing.assert_close(residual(p, q), expected)


class Twice(Dense):
    """A head that names every candidate twice, as a user's own head might."""

    def topk(self, hidden: Tensor, k: int, row_groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        *best, logsumexp = super().topk(hidden, k, row_groups)
        logits, tokens = (part.repeat_interleave(2, 1)[:, :k].contiguous() for part in best)
        return logits, tokens, logsumexp


@pytest.mark.parametrize(("temperature", "longest"), [(0.0, 5), (1.0, 3)])
def test_twins_of_a_node_do_not_change_the_text(temperature: float, longest: int) -> None:
    """Both are what the target chose, but one path is accepted.

    A greedy target takes the longest; one that draws goes down from the first twin only.
    """
    target, text = CausalModel(tiny()), prompt(12)
    draft = ModelDraft(tiny())
    options = {"sampling": Sampling(temperature, seed=3), "depth": 4, "tree_width": 4}
    plain = generate(target, draft, text, 40, head="dense", **options)
    twins = generate(target, draft, text, 40, head=Twice(draft.lm_head), **options)
    assert twins.tokens.tolist() == plain.tokens.tolist()
    assert max(twins.stats.acceptance_lengths) == longest
