# SPDX-License-Identifier: Apache-2.0
"""At temperature 1, texts drafted from the active tokens have the target's law, in SGLang.

The verifications here compute what SGLang's kernels do. The default one, of trees, takes drafts for
certain and reads no probabilities of theirs (`tree_speculative_sampling_target_only`). The other,
`chain_speculative_sampling_triton` with --speculative-use-rejection-sampling, takes the softmax of
the draft's logits, from which SGLang has drawn the drafts.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.integrations.sglang import plugin

from .fake_sglang import installed
from .test_sglang_draft import BUSY, Request, V, patched

TEXTS, DEPTH, SIBLINGS, START = 10_000, 2, 3, 5


@pytest.fixture(autouse=True)
def _sglang() -> Iterator[None]:
    torch.manual_seed(0)
    with installed():
        yield


class Loop:
    """Texts of one start under a target with a flat law, two steps of drafts long.

    honest: False: verify with other probabilities than the drafts were drawn from, or draw a
        rejected token again.
    """

    def __init__(self, kind: str, capacity: int, honest: bool) -> None:
        self.kind, self.honest = kind, honest
        self.worker = patched(capacity=capacity)
        self.plugin: Any = plugin.draft_of(self.worker)
        self.law = torch.randn(V, V).softmax(-1)
        self.newest = torch.full((TEXTS,), START)
        self.tokens: list[list[int]] = [[] for _ in range(TEXTS)]
        batch = SimpleNamespace(reqs=[Request([1, 2, 3, 9])])
        self.plugin.prompts(batch, self.newest[:1])

    def draft_law(self, tokens: Tensor) -> Tensor:
        """Return the law [N, V] that the draft draws from after tokens [N]."""
        model = self.worker.draft_runner.model
        logits = model(model.embedding[tokens])
        assert logits.isfinite().all()  # SGLang's asserts
        law: Tensor = logits.softmax(-1)
        active = set(self.plugin.head.slot_tokens().flatten().tolist()) - {-1}
        assert set(law.sum(0).nonzero().flatten().tolist()) <= active
        return law

    def step(self) -> None:
        accepted, tree = self.rejection() if self.kind == "rejection" else self.target_only()
        lengths = (accepted >= 0).sum(1)
        for text, row in zip(self.tokens, accepted.tolist(), strict=True):
            text += [token for token in row if token >= 0]
        self.newest = accepted.gather(1, lengths[:, None] - 1)[:, 0]
        result = SimpleNamespace(
            accept_lens=lengths,
            next_token_ids=accepted.clamp(min=0).flatten().int(),
            logits_output=SimpleNamespace(next_token_logits=self.law[tree.flatten()].log()),
        )
        requests = [Request([])] * TEXTS
        self.plugin.verified(SimpleNamespace(reqs=requests, forward_mode=BUSY), result)

    def rejection(self) -> tuple[Tensor, Tensor]:
        """Draw chains and verify them: accept where coin · q < p, else draw from (p - q)+."""
        accepted = torch.full((TEXTS, DEPTH + 1), -1)
        chain, laws = [self.newest], []
        for _ in range(DEPTH):
            laws.append(self.draft_law(chain[-1]))
            chain.append(laws[-1].multinomial(1)[:, 0])
        alive = torch.ones(TEXTS, dtype=torch.bool)
        for place in range(DEPTH + 1):
            p = self.law[chain[place]]
            rest = p
            if place < DEPTH:
                q, drafted = laws[place], chain[place + 1]
                if not self.honest:
                    model = self.worker.draft_runner.model
                    dense = model.embedding[chain[place]] @ model.lm_head.weight[:V].T
                    q = dense.softmax(-1)
                at = torch.arange(TEXTS), drafted
                taken = torch.rand(TEXTS) * q[at] < p[at]
                rest = (p - q).clamp(min=0)
            else:
                taken = torch.zeros(TEXTS, dtype=torch.bool)
                drafted = chain[-1]
            drawn = rest.clamp(min=1e-30).multinomial(1)[:, 0]
            accepted[:, place] = drafted.where(taken, drawn).where(alive, -1)
            alive = alive & taken
        return accepted, torch.stack(chain, 1)

    def target_only(self) -> tuple[Tensor, Tensor]:
        """Verify siblings: accept the first whose running sum of p exceeds the coin."""
        candidates = self.draft_law(self.newest).topk(SIBLINGS).indices
        assert all(len(set(row)) == SIBLINGS for row in candidates[:50].tolist())
        p = self.law[self.newest]
        sums = p.gather(1, candidates).cumsum(1)
        reached = torch.rand(TEXTS, 1) < sums
        taken, index = reached.any(1), reached.int().argmax(1)
        rest = p.scatter(1, candidates, 0.0) if self.honest else p
        drawn = rest.multinomial(1)[:, 0]
        chosen = candidates.gather(1, index[:, None])[:, 0]
        first = chosen.where(taken, drawn)
        bonus = self.law[first].multinomial(1)[:, 0].where(taken, -1)
        accepted = torch.full((TEXTS, SIBLINGS + 1), -1)
        accepted[:, 0], accepted[:, 1] = first, bonus
        return accepted, torch.cat((self.newest[:, None], candidates), 1)


def distance(tokens: Tensor, law: Tensor) -> float:
    """Return chi-square of tokens [N] of a law [V], in its standard deviations from its mean."""
    expected = len(tokens) * law
    squares = (tokens.bincount(minlength=V) - expected).square() / expected
    return float((squares.sum() - (V - 1)) / (2 * (V - 1)) ** 0.5)


@pytest.mark.parametrize(
    ("capacity", "honest"), [(2, True), (8, True), (8, False)], ids=["2", "8", "8, another law"]
)
@pytest.mark.parametrize("kind", ["rejection", "target only"])
def test_two_tokens_have_the_targets_law(kind: str, capacity: int, honest: bool) -> None:
    """With 2 slots, fewer tokens are active than siblings are wanted."""
    loop = Loop(kind, capacity, honest)
    loop.step()
    loop.step()
    texts = torch.tensor([text[:2] for text in loop.tokens])
    assert loop.law[START].max() < 0.2, "the law is not flat"
    first, second = loop.law[START], loop.law[START] @ loop.law
    distances = distance(texts[:, 0], first), distance(texts[:, 1], second)
    assert all(one < 5 for one in distances) == honest, distances
