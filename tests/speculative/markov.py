# SPDX-License-Identifier: Apache-2.0
"""A target and a draft whose next token depends on the newest token alone.

Their distributions have closed forms. The parts of the loop speculate many independent texts at
once, without the loop's models.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from microspec_kernels import ActiveVocab
from microspec_kernels.speculative import Dense, Head, LMHead, Sampling, Sparse, Static, chain
from microspec_kernels.speculative import verify as rules
from microspec_kernels.speculative.graphs import Graphs
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
    """A draft without memory. The features [.., SIZE] of a token are a row of a table.

    It also holds the target's `logits` after each token. `move` brings a tensor to where all run.
    """

    feature_layers = ()

    def __init__(self, move: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
        self.lm_head = LMHead(move(0.7 * WEIGHT))
        self.guesses, self.logits = move(GUESSES), move(LOGITS)

    def head_input(self, features: Tensor) -> Tensor:
        return features

    def step(
        self, tokens: Tensor, parents: Tensor, positions: Tensor, mask: Tensor, cache: KVCache
    ) -> Tensor:
        return self.guesses[tokens.clamp(min=0)]


def make_head(name: str, texts: int, draft: MarkovDraft) -> Head:
    device = draft.guesses.device
    if name == "dense":
        return Dense(draft.lm_head)
    if name == "static":
        return Static(draft.lm_head, torch.tensor([7, 0, 3, 9, 4], device=device))
    vocab = ActiveVocab(VOCAB, CAPACITY, num_groups=texts, device=device)
    vocab.update(torch.tensor([1, ROOT, 5], device=device).repeat(texts, 1))
    return Sparse(draft.lm_head, vocab)


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
    kind: str,
    head: str | Head,
    sampling: Sampling,
    seeds: Tensor,
    length: int,
    move: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> tuple[Tensor, float]:
    """Speculate texts int64 [B, length] after ROOT, one per seed int64 [B], by trees or chains.

    head: a name, or a head on the CPU. move: brings a tensor to where all run; on a GPU the steps
        are replays of one graph.

    Returns the texts and the mean number of tokens per step.
    """
    batch, draft = len(seeds), MarkovDraft(move)
    head = make_head(head, batch, draft) if isinstance(head, str) else head
    groups = move(torch.arange(batch) % head.num_groups)
    written, steps = torch.zeros(batch, dtype=torch.int64), 0
    texts = torch.full((batch, length + SHAPE.depth + 1), ROOT)
    seeds, newest, position = (move(tensor.clone()) for tensor in (seeds, texts[:, 0], written))
    graphs = Graphs(newest.device.type == "cuda")

    def step() -> Any:
        tree, verified = one_step(kind, draft, head, sampling, seeds, groups, newest, position)
        # The sparse head learns drafted tokens even if they are rejected, and evicts others for
        # them.
        shown = torch.cat((tree.tokens, verified.tokens), dim=1)
        head.observe(shown.flatten(), groups[:, None].expand_as(shown).flatten())
        return verified

    while int(written.min()) < length:
        verified = graphs.run("step", step)
        tokens, counts = verified.tokens.cpu(), verified.counts.cpu()
        going = written < length
        for column in range(tokens.shape[1]):
            row = (going & (column < counts)).nonzero().flatten()
            texts[row, written[row] + column] = tokens[row, column]
        written = torch.where(going, written + counts, written)
        newest.copy_(texts[torch.arange(batch), written - 1])
        position.copy_(written)
        steps += int(going.sum())
    return texts[:, :length], int(written.sum()) / steps


def one_step(
    kind: str,
    draft: MarkovDraft,
    head: Head,
    sampling: Sampling,
    seeds: Tensor,
    groups: Tensor,
    newest: Tensor,
    positions: Tensor,
) -> tuple[Tree, Any]:
    clock = Clock(seeds.device, {}, on=False)
    cache = KVCache(1, seeds.device, len(seeds))
    drafted_by = newest, draft.guesses[newest], groups, draft, cache, head
    if kind == "chain":
        uniforms = chain.chain_uniforms(seeds, positions, SHAPE.depth)
        drafted = chain.sample_chain(*drafted_by, sampling, uniforms.draft, clock)
        p = sampling.shares(draft.logits[drafted.tokens.clamp(min=0)])
        tokens = drafted.tokens[:, 1:]
        return drafted, rules.verify_chain(
            p, drafted.draft_probs, tokens, uniforms.accept, uniforms.final
        )
    tree = grow(*drafted_by, SHAPE, clock)
    texts = torch.arange(len(seeds), device=seeds.device)

    def choice(nodes: Tensor, depths: Tensor) -> Tensor:
        uniforms = uniforms_at(seeds, positions + 1 + depths)
        return choose(draft.logits[tree.tokens[texts, nodes]], uniforms, sampling)

    return tree, rules.follow(tree, choice, SHAPE.depth)
