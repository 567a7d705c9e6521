# SPDX-License-Identifier: Apache-2.0
"""A draft head on the device and its reference, step by step: all bits equal but logsumexp's.

Weights and activations are small integers, so every logit is exact in any order of sums. The
reference vocabulary uses the compiled CPU op, which has its own tests against an LRU.
"""

import torch
from compare import EPS, assert_bitwise, assert_close
from generators import integers
from torch import Tensor

from microspec_kernels import ActiveVocab

VOCAB_SIZE, CAPACITY, DIM, ROWS, BEST, TOKENS = 512, 64, 128, 5, 9, 12
HIDDENS = 16
PINNED = (3, 500)


class Lockstep:
    """The inputs of both sides: weights, activations and a stream of tokens."""

    def __init__(self, steps: int, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.weight = integers(rng, (VOCAB_SIZE, DIM), torch.bfloat16)
        self.hiddens = integers(rng, (HIDDENS, ROWS, DIM), torch.bfloat16)
        self.logits = self.hiddens.double() @ self.weight.double().T  # [HIDDENS, ROWS, V]
        self.order = torch.randint(HIDDENS, (steps,), generator=rng).tolist()
        # Most tokens follow a drifting topic, some are arbitrary: most steps evict, some evict
        # nothing.
        topic = torch.arange(steps)[:, None] // 7 + torch.randint(
            0, 60, (steps, TOKENS), generator=rng
        )
        anything = torch.randint(-1, VOCAB_SIZE, (steps, TOKENS), generator=rng)
        rare = torch.rand(steps, TOKENS, generator=rng) < 0.1
        self.tokens = torch.where(rare, anything, topic % VOCAB_SIZE)
        self.tokens[::11] = -1
        self.vocab = ActiveVocab(VOCAB_SIZE, CAPACITY, pinned=PINNED)
        self.evictions = 0

    def step(self, index: int) -> None:
        before = self.vocab.ids.clone()
        self.vocab.update(self.tokens[index])
        self.evictions += int(((before >= 0) & (self.vocab.ids != before)).sum())

    def best(self, index: int, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best logits, token ids and logsumexp (float64) of a step over these ids."""
        active = ids[ids >= 0].long().sort().values
        z = self.logits[self.order[index]][:, active]
        values, at = z.sort(dim=1, descending=True, stable=True)
        found = min(BEST, len(active))
        logits = torch.full((ROWS, BEST), float("-inf"))
        token_ids = torch.full((ROWS, BEST), -1)
        logits[:, :found], token_ids[:, :found] = values[:, :found].float(), active[at][:, :found]
        return logits, token_ids, z.logsumexp(1)

    def check_head(self, index: int, ids: Tensor, got: tuple[Tensor, ...]) -> None:
        logits, token_ids, logsumexp = self.best(index, ids)
        assert_bitwise(got[1].cpu(), token_ids, f"step {index}: token_ids")
        assert_bitwise(got[0].cpu() + 0.0, logits + 0.0, f"step {index}: logits")
        assert_close(got[2].cpu(), logsumexp, 16 * EPS * 256, f"step {index}: logsumexp")

    def check_vocab(self, index: int, vocab: ActiveVocab) -> None:
        state = vocab.state_dict()
        for name, tensor in self.vocab.state_dict().items():
            assert_bitwise(state[name].cpu(), tensor, f"step {index}: {name}")
