# SPDX-License-Identifier: Apache-2.0
"""Chains of drawn tokens: the tokens, their distribution and the uniforms behind them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.speculative import Sampling
from microspec_kernels.speculative.chain import chain_uniforms, propose, sample_chain
from microspec_kernels.speculative.models.cache import KVCache
from microspec_kernels.speculative.sampling import draw, uniforms_at
from microspec_kernels.speculative.stats import Clock

from .markov import GUESSES, HEADS, VOCAB, MarkovDraft, make_head

CLOCK = Clock(torch.device("cpu"), {}, on=False)


class Remembering(MarkovDraft):
    """Check the ancestor mask and count the cache entries."""

    def step(
        self, tokens: Tensor, parents: Tensor, positions: Tensor, mask: Tensor, cache: KVCache
    ) -> Tensor:
        read = cache.pending + 1
        assert positions.tolist() == [[5 + cache.pending]] * len(tokens)
        assert mask.shape[1:] == (1, read + cache.room)
        assert bool(mask[:, :, : read + 5].all()) and not bool(mask[:, :, read + 5 :].any())
        cache.advance(positions)
        return super().step(tokens, parents, positions, mask, cache)


class Stumbling(Remembering):
    """Return NaN features for the first text at the first step."""

    def step(
        self, tokens: Tensor, parents: Tensor, positions: Tensor, mask: Tensor, cache: KVCache
    ) -> Tensor:
        features = super().step(tokens, parents, positions, mask, cache)
        if cache.pending == 1:
            features[0] = torch.nan
        return features


def sampled(
    head: Any, roots: list[int], depth: int, sampling: Sampling, draft: Any = None
) -> tuple[Any, Tensor]:
    newest = torch.tensor(roots)
    seeds = torch.arange(len(roots)) + 5
    uniforms = chain_uniforms(seeds, torch.full_like(seeds, 30), depth).draft
    cache = KVCache(1, newest.device, len(roots))
    cache.lengths += 5
    cache.longest = 5
    groups = torch.arange(len(roots)) % head.num_groups
    chain = sample_chain(
        newest,
        GUESSES[newest],
        groups,
        draft or Remembering(),
        cache,
        head,
        sampling,
        uniforms,
        CLOCK,
    )
    assert cache.lengths.tolist() == [5] * len(roots) and cache.pending == 0
    return chain, uniforms


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, 0.9, 6)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", HEADS)
def test_every_level_is_drawn_from_the_heads_distribution(
    name: str, depth: int, sampling: Sampling
) -> None:
    head = make_head(name, 4, MarkovDraft())
    chain, uniforms = sampled(head, [3, 0, 3, 7], depth, sampling)
    assert chain.tokens.shape == (4, depth + 1) and chain.sizes.tolist() == [depth + 1] * 4
    assert chain.parents.tolist() == [[0, *range(depth)]] * 4
    assert torch.equal(chain.ancestor_mask, torch.ones(4, depth + 1, depth + 1).tril().bool())
    proposable = torch.stack(
        [
            head.contains(torch.arange(VOCAB), torch.full((VOCAB,), g % head.num_groups))
            for g in range(4)
        ]
    )
    for level in range(depth):
        before, after = chain.tokens[:, level], chain.tokens[:, level + 1]
        logits = MarkovDraft().lm_head.logits(GUESSES[before]).where(proposable, -torch.inf)
        distribution = sampling.probabilities(logits)
        torch.testing.assert_close(chain.draft_probs[:, level], distribution, rtol=1e-5, atol=1e-7)
        assert bool((chain.draft_probs[:, level].gather(1, after[:, None]) > 0).all())
        if name == "dense":
            assert torch.equal(after, draw(distribution, uniforms[:, level]))


def test_a_head_without_tokens_drafts_none() -> None:
    head = make_head("sparse", 2, MarkovDraft())
    head.vocab.reset([1])
    chain, _ = sampled(head, [3, 3], 3, Sampling(1.0))
    assert chain.sizes.tolist() == [4, 1]
    assert chain.tokens[1].tolist() == [3, -1, -1, -1]
    assert bool((chain.draft_probs[1, 0] == 0).all()) and bool(
        (chain.draft_probs[0].sum(-1) > 0.99).all()
    )


def test_a_chain_that_has_ended_stays_so() -> None:
    chain, _ = sampled(make_head("dense", 2, MarkovDraft()), [3, 3], 3, Sampling(1.0), Stumbling())
    assert chain.sizes.tolist() == [2, 4]
    assert chain.tokens[0, 2:].tolist() == [-1, -1]
    assert chain.draft_probs.sum(-1).round(decimals=6).tolist() == [[1, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 0.9)], ids=["greedy", "drawn"])
def test_logits_that_are_no_distribution_propose_nothing(value: float, sampling: Sampling) -> None:
    logits = torch.tensor([[value, value, value], [0.0, 0.0, -torch.inf]])
    ids = torch.tensor([[4, 0, 2], [1, 4, -1]])
    tokens, distribution = propose(logits, ids, 5, torch.zeros(2, dtype=torch.float64), sampling)
    assert tokens.tolist() == [-1, 1]
    assert (
        distribution[0].tolist() == [0] * 5
        and distribution[1, 0] == 0
        and distribution[1].sum() == 1
    )


def test_no_number_is_used_twice() -> None:
    """Overlapping chains of one text, with successive roots, use no uniform twice."""
    positions, depth = torch.arange(40), 4
    uniforms = chain_uniforms(torch.full_like(positions, 7), positions, depth)
    once = torch.cat((uniforms.draft.flatten(), uniforms.accept.flatten()))
    single = uniforms_at(7, torch.arange(1, 40 + depth + 1))
    assert len(torch.cat((once, single)).unique()) == len(once) + len(single)
    for place in range(40):
        assert torch.equal(uniforms.final[place], single[place : place + depth + 1])
