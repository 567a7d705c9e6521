"""Chains of sampled tokens, which engines draft where they do not draft trees."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .heads import Head
from .models.cache import KVCache
from .models.draft import Draft
from .sampling import Sampling, draw, uniforms
from .stats import Clock
from .tree import Tree


@dataclass(frozen=True)
class Chain(Tree):
    """A tree without branches, whose tokens were drawn from `laws` fp64 [B, n - 1, V]."""

    laws: Tensor


class Numbers(NamedTuple):
    """What draws and verifies chains of d tokens: `draft` and `accept` fp64 [B, d], and `final`
    [B, d + 1] for the token behind as many accepted ones (see `verify.verify_chain`)."""

    draft: Tensor
    accept: Tensor
    final: Tensor


def chain_numbers(seeds: Tensor, places: Tensor, depth: int) -> Numbers:
    """For texts with seeds int64 [B], whose chains begin below the places int64 [B].

    The target's own token takes the number of its place in the text. A draft's are
    those of its root's place, level by level, and not of its own: a token that is rejected may
    have taught the vocabulary something, so that the next chain's laws depend on the numbers that
    drew it, which therefore may not draw from these laws. No two chains of a text have one root.
    """
    seeds, roots = seeds[:, None], places[:, None]
    levels = torch.arange(depth + 1, device=places.device)
    streams = 1 + 2 * levels[:-1]
    return Numbers(
        uniforms(seeds, roots, streams),
        uniforms(seeds, roots, streams + 1),
        uniforms(seeds, roots + 1 + levels),
    )


def sample_chain(
    roots: Tensor,
    features: Tensor,
    groups: Tensor,
    draft: Draft,
    cache: KVCache,
    head: Head,
    sampling: Sampling,
    numbers: Tensor,
    clock: Clock,
) -> Chain:
    """Draft a chain below each root int64 [B], a level by each column of numbers fp64 [B, depth].

    Each level draws one token over those that the head knows. The rest is as for `tree.grow`.
    """
    bases = list(cache.lengths)
    tokens, laws = [roots], []
    depth = numbers.shape[1]
    for level in range(depth):
        with clock("head"):
            logits, ids = head.logits(draft.head_input(features), groups)
        with clock("tree"):
            # A chain that has ended stays so.
            logits = logits.where(tokens[-1][:, None] >= 0, -torch.inf)
            vocab_size = draft.lm_head.vocab_size
            drawn, law = propose(logits, ids, vocab_size, numbers[:, level], sampling)
            tokens.append(drawn)
            laws.append(law)
            if level == depth - 1:
                break
        with clock("draft_layer"):
            lineage = torch.ones(1, 1, level + 1, dtype=torch.bool, device=roots.device)
            read = tokens[-1].clamp(min=0)[:, None]
            features = draft.step(read, features[:, None], lineage, cache)[:, 0]
    cache.keep(bases, [[]] * len(bases))
    with clock("tree"):
        chain = torch.stack(tokens, dim=1)
        sizes: list[int] = (chain >= 0).sum(1).tolist()
        nodes = torch.arange(depth + 1, device=chain.device)
        lineage = (nodes <= nodes[:, None]).expand(len(chain), -1, -1)
        parents = (nodes - 1).clamp(min=0).expand_as(chain)
        return Chain(chain, parents, lineage, sizes, torch.stack(laws, dim=1))


def propose(
    logits: Tensor, ids: Tensor, vocab_size: int, numbers: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Draw from logits [B, c] of the tokens `ids` int64 [B, c], -1 for none, by numbers fp64 [B].

    Returns the tokens int64 [B] and their laws fp64 [B, V]; where the logits give no law, as those
    of an empty vocabulary or of a broken draft, -1 and zeros.
    """
    usable = logits.amax(-1).isfinite()
    shares = sampling.probabilities(logits.where(usable[:, None], 0))
    tokens = ids.gather(1, draw(shares, numbers)[:, None])[:, 0].where(usable, -1)
    law = shares.new_zeros(len(ids), vocab_size)
    # Added, not written: what is no token brings a zero to token 0.
    law.scatter_add_(1, ids.clamp(min=0), shares * (usable[:, None] & (ids >= 0)))
    return tokens, law
