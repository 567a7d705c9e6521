# SPDX-License-Identifier: Apache-2.0
"""Chains of sampled tokens, the drafts of engines that do not draft trees."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .heads import Head
from .models.cache import KVCache
from .models.draft import Draft
from .sampling import Sampling, draw, uniforms_at
from .stats import Clock
from .tree import Tree


@dataclass(frozen=True)
class Chain(Tree):
    """A tree without branches.

    `draft_probs` fp64 [B, n - 1, V]: the distributions that the tokens were drawn from.
    """

    draft_probs: Tensor


class ChainUniforms(NamedTuple):
    """Random numbers that draw and verify chains of d tokens.

    `draft` and `accept`: fp64 [B, d]. `final`: fp64 [B, d + 1], one for each possible number of
    accepted tokens (see `verify.verify_chain`).
    """

    draft: Tensor
    accept: Tensor
    final: Tensor


def chain_uniforms(seeds: Tensor, positions: Tensor, depth: int) -> ChainUniforms:
    """Return the uniforms for texts with seeds int64 [B] and chain roots at positions int64 [B].

    The target's token takes the number of its own position in the text. A drafted token takes
    numbers of the root's position, two streams for each level, and not of its own position. Reason:
    a rejected token may have changed the vocabulary, so the next chain's distributions depend on
    the numbers that drew it, and these numbers must not draw from those distributions. No two
    chains of a text have the same root.
    """
    seeds, roots = seeds[:, None], positions[:, None]
    levels = torch.arange(depth + 1, device=positions.device)
    streams = 1 + 2 * levels[:-1]
    return ChainUniforms(
        uniforms_at(seeds, roots, streams),
        uniforms_at(seeds, roots, streams + 1),
        uniforms_at(seeds, roots + 1 + levels),
    )


def no_uniforms(roots: Tensor, depth: int) -> ChainUniforms:
    """Return zeros in place of `chain_uniforms` for roots int64 [B]; greedy choices ignore them."""
    zeros = torch.zeros(len(roots), depth + 1, dtype=torch.float64, device=roots.device)
    return ChainUniforms(zeros[:, :-1], zeros[:, :-1], zeros)


def sample_chain(
    roots: Tensor,
    features: Tensor,
    text_groups: Tensor,
    draft: Draft,
    cache: KVCache,
    head: Head,
    sampling: Sampling,
    uniforms: Tensor,
    clock: Clock,
) -> Chain:
    """Draft a chain below each root int64 [B], one level a column of uniforms fp64 [B, depth].

    Each level draws one token among those that the head knows. For the other arguments see
    `tree.grow`.
    """
    positions, mask, itself = cache.ahead(uniforms.shape[1]), cache.mask(), cache.alone(1)
    tokens, draft_probs = [roots], []
    depth = uniforms.shape[1]
    for level in range(depth):
        with clock("head"):
            logits, ids = head.logits(draft.head_input(features), text_groups)
        with clock("tree"):
            # An ended chain stays ended.
            logits = logits.where(tokens[-1][:, None] >= 0, -torch.inf)
            vocab_size = draft.lm_head.vocab_size
            drawn, distribution = propose(logits, ids, vocab_size, uniforms[:, level], sampling)
            tokens.append(drawn)
            draft_probs.append(distribution)
            if level == depth - 1:
                break
        with clock("draft_layer"):
            mask = torch.cat((itself, mask), dim=2)
            read = tokens[-1][:, None], features[:, None], positions[:, level : level + 1], mask
            features = draft.step(*read, cache)[:, 0]
    cache.drop()
    with clock("tree"):
        chain = torch.stack(tokens, dim=1)
        nodes = torch.arange(depth + 1, device=chain.device)
        ancestor_mask = (nodes <= nodes[:, None]).expand(len(chain), -1, -1)
        parents = (nodes - 1).clamp(min=0).expand_as(chain)
        depths = nodes.expand_as(chain)
        return Chain(chain, parents, depths, ancestor_mask, torch.stack(draft_probs, dim=1))


def propose(
    logits: Tensor, ids: Tensor, vocab_size: int, uniforms: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Draw from logits [B, c] of the tokens `ids` int64 [B, c], -1 for none, by uniforms fp64 [B].

    Returns the tokens int64 [B] and their distributions fp64 [B, V]. Where a row has no finite
    largest logit (an empty vocabulary or a broken draft), the token is -1 and the distribution is
    zero.
    """
    usable = logits.amax(-1).isfinite()
    shares = sampling.shares(logits.where(usable[:, None], 0))
    tokens = ids.gather(1, draw(shares, uniforms)[:, None])[:, 0].where(usable, -1)
    distribution = shares.new_zeros(len(ids), vocab_size)
    # Add instead of writing: an entry without a token adds a zero to token 0.
    distribution.scatter_add_(1, ids.clamp(min=0), shares * (usable[:, None] & (ids >= 0)))
    return tokens, distribution
