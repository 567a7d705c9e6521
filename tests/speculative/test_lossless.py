# SPDX-License-Identifier: Apache-2.0
"""Speculated text follows the target's distribution for every head; broken rules are detected."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.speculative import Sampling, chain
from microspec_kernels.speculative import verify as rules
from microspec_kernels.speculative.chain import ChainUniforms
from microspec_kernels.speculative.sampling import draw, uniforms_at

from . import markov
from .distribution import check
from .markov import (
    HEADS,
    VOCAB,
    MarkovDraft,
    distribution_of_texts,
    make_head,
    numbered,
    speculate,
)
from .paths import Path, plain

TEXTS, LENGTH = 100_000, 3
WARPED = Sampling(temperature=0.8, top_p=0.9, top_k=8)


def check_lossless(kind: str, head: str, sampling: Sampling, path: Path = plain) -> None:
    """Check that single tokens, pairs and triples follow the target's distributions."""
    with path() as move:
        texts, per_step = speculate(kind, head, sampling, torch.arange(TEXTS), LENGTH, move)
    assert per_step > 1.1, "hardly a draft was accepted: the test would say little"
    distribution = distribution_of_texts(sampling, LENGTH).view((VOCAB,) * LENGTH)
    for columns in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)):
        others = [column for column in range(LENGTH) if column not in columns]
        check(
            numbered(texts[:, columns]),
            distribution.sum(others).flatten() if others else distribution.flatten(),
        )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["tree", "chain"])
def test_the_distribution_is_the_targets(kind: str, head: str) -> None:
    check_lossless(kind, head, Sampling(1.0))


@pytest.mark.parametrize("kind", ["tree", "chain"])
def test_the_distribution_is_the_targets_warped(kind: str, path: Path) -> None:
    """Over the captured path one graph takes all steps but the first, as evicting ones go on."""
    check_lossless(kind, "sparse", WARPED, path)


def alone(seeds: Tensor, rule: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Draw the target's texts by `rule`, from logits and the uniforms of their positions."""
    texts = torch.full((len(seeds), LENGTH + 1), markov.ROOT)
    for place in range(LENGTH):
        uniforms = uniforms_at(seeds, torch.full_like(seeds, place + 1))
        texts[:, place + 1] = rule(markov.LOGITS[texts[:, place]], uniforms)
    return texts[:, 1:]


def test_trees_and_chains_of_nothing_give_the_text_of_the_target_alone() -> None:
    """The texts agree token by token: a position's uniform decides, whatever was drafted."""
    seeds = torch.arange(1000)
    chosen = alone(seeds, lambda logits, uniforms: markov.choose(logits, uniforms, WARPED))
    for head in HEADS:
        texts, _ = speculate("tree", head, WARPED, seeds, LENGTH)
        assert torch.equal(texts, chosen)
    empty = make_head("sparse", 1000, MarkovDraft())
    empty.vocab.reset()
    empty.observe = lambda tokens, groups: None
    texts, per_step = speculate("chain", empty, WARPED, seeds, LENGTH)
    drawn = alone(seeds, lambda logits, uniforms: draw(WARPED.probabilities(logits), uniforms))
    assert torch.equal(texts, drawn) and per_step == 1


Broken = Callable[[pytest.MonkeyPatch], None]
BROKEN: dict[str, Broken] = {}


def broken(kind: str, head: str = "dense") -> Callable[[Broken], Broken]:
    def keep(rule: Broken) -> Broken:
        BROKEN[f"{kind}-{head}-{rule.__name__}"] = rule
        return rule

    return keep


@broken("chain")
def accepts_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "accepted", lambda p, q, uniforms: q > 0)


@broken("chain")
def inverts_the_ratio(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "accepted", lambda p, q, uniforms: uniforms * p < q)


@broken("chain")
def subtracts_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "residual", lambda p, q: p)


@broken("chain")
def does_not_renormalise(patch: pytest.MonkeyPatch) -> None:
    """Give the missing probability of the residual to the last token."""

    def residual(p: Tensor, q: Tensor) -> Tensor:
        over = (p - q).clamp(min=0)
        over[:, -1] += 1 - over.sum(1)
        return over

    patch.setattr(rules, "residual", residual)


@broken("chain")
def draws_the_bonus_from_the_draft(patch: pytest.MonkeyPatch) -> None:
    verify_chain = rules.verify_chain

    def verify(p: Tensor, q: Tensor, *rest: Any) -> rules.Verified:
        return verify_chain(torch.cat((p[:, :-1], q[:, -1:]), dim=1), q, *rest)

    patch.setattr(rules, "verify_chain", verify)


def renumber(patch: pytest.MonkeyPatch, change: Callable[[ChainUniforms], ChainUniforms]) -> None:
    right = chain.chain_uniforms
    patch.setattr(chain, "chain_uniforms", lambda *key: change(right(*key)))


@broken("chain")
def draws_the_rest_by_the_number_that_rejected(patch: pytest.MonkeyPatch) -> None:
    renumber(patch, lambda n: n._replace(final=torch.cat((n.accept, n.final[:, -1:]), dim=1)))


@broken("chain")
def accepts_by_the_number_that_drafted(patch: pytest.MonkeyPatch) -> None:
    renumber(patch, lambda n: n._replace(accept=n.draft))


@broken("chain")
def drafts_by_the_number_of_the_final_token(patch: pytest.MonkeyPatch) -> None:
    renumber(patch, lambda n: n._replace(draft=n.final[:, :-1]))


@broken("chain")
def accepts_every_level_by_one_number(patch: pytest.MonkeyPatch) -> None:
    renumber(patch, lambda n: n._replace(accept=n.accept[:, :1].expand_as(n.accept)))


@broken("chain", "sparse")
def redrafts_by_numbers_that_taught_the_vocabulary(patch: pytest.MonkeyPatch) -> None:
    """Draft with the uniform of the token's own position, which a later chain uses again."""

    def uniforms(seeds: Tensor, positions: Tensor, depth: int) -> ChainUniforms:
        next_positions = (positions[:, None] + torch.arange(1, depth + 2)).contiguous()
        draws = (uniforms_at(seeds[:, None], next_positions, stream) for stream in (1, 2, 0))
        draft, accept, final = draws
        return ChainUniforms(draft[:, :-1], accept[:, :-1], final)

    patch.setattr(chain, "chain_uniforms", uniforms)


@broken("chain")
def forgets_what_the_drafts_distribution_was(patch: pytest.MonkeyPatch) -> None:
    """Verify with a flatter distribution than the draft drew from, like another temperature."""
    propose = chain.propose

    def flatter(*arguments: Any) -> tuple[Tensor, Tensor]:
        tokens, distribution = propose(*arguments)
        return tokens, distribution.sqrt() / distribution.sqrt().sum(1, keepdim=True)

    patch.setattr(chain, "propose", flatter)


def rechoose(
    patch: pytest.MonkeyPatch, change: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
) -> None:
    """Replace the target's choices by `change(tree, texts, nodes, chosen)`."""
    right = rules.follow

    def follow(tree: Any, choose: Callable[[Tensor, Tensor], Tensor], depth: int) -> Any:
        texts = torch.arange(len(tree.tokens))
        return right(
            tree,
            lambda nodes, depths: change(tree, texts, nodes, choose(nodes, depths)),
            depth,
        )

    patch.setattr(rules, "follow", follow)


def children(tree: Any, texts: Tensor, nodes: Tensor) -> Tensor:
    """Return a mask [a, n] of the nodes that are children of the nodes [a]."""
    below = (tree.parents[texts] == nodes[:, None]) & (tree.tokens[texts] >= 0)
    below[:, 0] = False
    return below


@broken("tree")
def chooses_among_children_only(patch: pytest.MonkeyPatch) -> None:
    def among(tree: Any, texts: Tensor, nodes: Tensor, chosen: Tensor) -> Tensor:
        below = children(tree, texts, nodes)
        hit = (below & (tree.tokens[texts] == chosen[:, None])).any(1)
        first = tree.tokens[texts, below.int().argmax(1)]
        return chosen.where(hit | ~below.any(1), first)

    rechoose(patch, among)


@broken("tree")
def tries_again_where_no_child_fits(patch: pytest.MonkeyPatch) -> None:
    def again(tree: Any, texts: Tensor, nodes: Tensor, chosen: Tensor) -> Tensor:
        hit = (children(tree, texts, nodes) & (tree.tokens[texts] == chosen[:, None])).any(1)
        distribution = Sampling(1.0).probabilities(markov.LOGITS[tree.tokens[texts, nodes]])
        return chosen.where(hit, torch.multinomial(distribution, 1)[:, 0])

    rechoose(patch, again)


@broken("tree")
def numbers_by_the_depth_in_the_tree(patch: pytest.MonkeyPatch) -> None:
    """Use depth instead of position: each pass then draws its first token by the same uniform."""
    one_step = markov.one_step
    patch.setattr(
        markov,
        "one_step",
        lambda *arguments: one_step(*arguments[:-1], torch.zeros_like(arguments[-1])),
    )


@broken("tree")
def has_one_number_for_all_places(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        markov,
        "uniforms_at",
        lambda seeds, positions: uniforms_at(seeds, torch.zeros_like(positions)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, head, _ = name.split("-")
    BROKEN[name](monkeypatch)
    with pytest.raises(AssertionError, match="total variation"):
        check_lossless(kind, head, Sampling(1.0))
