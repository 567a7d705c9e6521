# SPDX-License-Identifier: Apache-2.0
"""A target and a draft whose next token depends on the newest token alone.

Their distributions have closed forms. The parts of the loop speculate many independent texts at
once, without the loop's models.
"""

from typing import Any

import torch
from torch import Tensor

from microspec_kernels import ActiveVocab
from microspec_kernels.speculative import Dense, Head, LMHead, Sampling, Sparse, Static, chain
from microspec_kernels.speculative import verify as rules
from microspec_kernels.speculative.models.cache import KVCache
from microspec_kernels.speculative.sampling import choose, uniforms_at
from microspec_kernels.speculative.stats import Clock
from microspec_kernels.speculative.tree import Tree, TreeShape, grow

VOCAB, SIZE, ROOT = 12, 8, 3
SHAPE = TreeShape(depth=2, tree_width=2, size=4)
# Fewer tokens than a tree and its choices can show, so the vocabulary evicts at every step.
CAPACITY = 3
HEADS = ("dense", "static", "sparse")

random = torch.Generator().manual_seed(2)
WEIGHT = torch.randn(VOCAB, SIZE, generator=random)
FEATURES = torch.randn(VOCAB, SIZE, generator=random)
# Half of the draft's distribution of a token is wrong.
GUESSES = FEATURES + 0.5 * torch.randn(VOCAB, SIZE, generator=random)
LOGITS = 0.7 * (FEATURES @ WEIGHT.T).double()


class MarkovDraft:
    """A draft without memory. The features [.., SIZE] of a token are a row of a table."""

    lm_head = LMHead(0.7 * WEIGHT)
    feature_layers = ()

    def head_input(self, features: Tensor) -> Tensor:
        return features

    def step(
        self, tokens: Tensor, parents: Tensor, positions: Tensor, mask: Tensor, cache: KVCache
    ) -> Tensor:
        return GUESSES[tokens.clamp(min=0)]


def make_head(name: str, texts: int) -> Head:
    if name == "dense":
        return Dense(MarkovDraft.lm_head)
    if name == "static":
        return Static(MarkovDraft.lm_head, torch.tensor([7, 0, 3, 9, 4]))
    vocab = ActiveVocab(VOCAB, CAPACITY, num_groups=texts)
    vocab.update(torch.tensor([1, ROOT, 5]).repeat(texts, 1))
    return Sparse(MarkovDraft.lm_head, vocab)


def distribution_of_texts(sampling: Sampling, length: int) -> Tensor:
    """Compute the target's distribution of `length` tokens after ROOT, fp64 [VOCAB ** length]."""
    steps = sampling.probabilities(LOGITS)
    distribution = steps[ROOT]
    for _ in range(length - 1):
        distribution = (distribution.view(-1, VOCAB, 1) * steps).flatten()
    return distribution


def numbered(texts: Tensor) -> Tensor:
    """Return the cell of each text int64 [n, length] in such a distribution, int64 [n]."""
    cells = torch.zeros_like(texts[:, 0])
    for column in texts.unbind(1):
        cells = cells * VOCAB + column
    return cells


def speculate(
    kind: str, head: Head, sampling: Sampling, seeds: Tensor, length: int
) -> tuple[Tensor, float]:
    """Speculate texts int64 [B, length] after ROOT, one per seed int64 [B], by trees or chains.

    Returns the texts and the mean number of tokens per step.
    """
    batch = len(seeds)
    groups = torch.arange(batch) % head.num_groups
    written, steps = torch.zeros(batch, dtype=torch.int64), 0
    texts = torch.full((batch, length + SHAPE.depth + 1), ROOT)
    newest = texts[:, 0].clone()
    while int(written.min()) < length:
        tree, verified = one_step(kind, head, sampling, seeds, groups, newest, written)
        tokens, counts = verified.tokens, verified.counts
        # The sparse head learns drafted tokens even if they are rejected, and evicts others for
        # them.
        shown = torch.cat((tree.tokens, tokens), dim=1)
        head.observe(shown.flatten(), groups.repeat_interleave(shown.shape[1]))
        going = written < length
        for column in range(tokens.shape[1]):
            row = (going & (column < counts)).nonzero().flatten()
            texts[row, written[row] + column] = tokens[row, column]
        written = torch.where(going, written + counts, written)
        newest = texts[torch.arange(batch), written - 1]
        steps += int(going.sum())
    return texts[:, :length], int(written.sum()) / steps


def one_step(
    kind: str,
    head: Head,
    sampling: Sampling,
    seeds: Tensor,
    groups: Tensor,
    newest: Tensor,
    positions: Tensor,
) -> tuple[Tree, Any]:
    clock = Clock(torch.device("cpu"), {}, on=False)
    drafted_by = (
        newest,
        GUESSES[newest],
        groups,
        MarkovDraft(),
        KVCache(1, seeds.device, len(seeds)),
        head,
    )
    if kind == "chain":
        uniforms = chain.chain_uniforms(seeds, positions, SHAPE.depth)
        drafted = chain.sample_chain(*drafted_by, sampling, uniforms.draft, clock)
        p = sampling.probabilities(LOGITS[drafted.tokens.clamp(min=0)])
        tokens = drafted.tokens[:, 1:]
        return drafted, rules.verify_chain(
            p, drafted.draft_probs, tokens, uniforms.accept, uniforms.final
        )
    tree = grow(*drafted_by, SHAPE, clock)
    texts = torch.arange(len(seeds))

    def choice(nodes: Tensor, depths: Tensor) -> Tensor:
        uniforms = uniforms_at(seeds, positions + 1 + depths)
        return choose(LOGITS[tree.tokens[texts, nodes]], uniforms, sampling)

    return tree, rules.follow(tree, choice, SHAPE.depth)
