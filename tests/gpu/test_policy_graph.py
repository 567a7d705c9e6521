# SPDX-License-Identifier: Apache-2.0
"""A policy and its coverage in one captured graph; each replay is compared with the CPU."""

import torch
from compare import assert_bitwise
from torch import Tensor

from microspec_kernels import ActiveVocab, Coverage, policy
from microspec_kernels.policy import Policy, TargetPass

from .test_graphs import captured

VOCAB, NODES, BEST, STEPS = 512, 12, 3, 300
DEVICE = "cuda"


class Loop:
    """The work of an engine after every pass: coverage, vocabularies, ids for the next draft."""

    def __init__(self, device: str) -> None:
        self.policy = Policy((*policy.MICROSPEC, policy.generated(budget=4)))
        self.small, self.large = (ActiveVocab(VOCAB, k, device=device) for k in (20, 256))
        self.coverage = Coverage(self.small, half_life=16)
        self.target_pass = TargetPass(
            "step",
            torch.full((NODES,), -1, device=device),
            torch.full((NODES, BEST), -1, device=device),
            torch.full((NODES,), -1, device=device),
        )
        self.ids = torch.empty(1, 256, dtype=torch.int32, device=device)

    def load(self, tree: Tensor, best: Tensor, chosen: Tensor) -> None:
        held = self.target_pass
        for held_tensor, new in (
            (held.tokens, tree),
            (held.top_tokens, best),
            (held.chosen, chosen),
        ):
            held_tensor.copy_(new)

    def step(self) -> None:
        self.ids.copy_(self.coverage.fall_back(self.large, below=0.5))
        self.coverage.count(self.target_pass.chosen)
        tokens = self.policy.select(self.target_pass)
        self.small.update(tokens)
        self.large.update(tokens)

    def reset(self) -> None:
        for part in (self.small, self.large, self.coverage):
            part.reset()


def test_policy_and_coverage() -> None:
    rng = torch.Generator().manual_seed(0)
    there, here = Loop(DEVICE), Loop("cpu")
    replay = captured(there.step)
    there.reset()
    fallen = 0
    for step in range(STEPS):
        topic = step // 20 * 31
        shown = topic + torch.randint(-1, 40, (NODES, BEST + 2), generator=rng)
        tree, chosen, best = shown[:, 0] % VOCAB, shown[:, 1] % VOCAB, shown[:, 2:] % VOCAB
        chosen = torch.where(torch.rand(NODES, generator=rng) < 0.3, chosen, -1)
        for loop in (there, here):
            loop.load(tree, best, chosen)
        replay()
        here.step()
        fallen += int((here.ids >= 0).sum()) > here.small.capacity
        assert_bitwise(there.ids.cpu(), here.ids, f"step {step}: ids")
        assert_bitwise(there.small.ids.cpu(), here.small.ids, f"step {step}: the small one's")
    assert 0 < fallen < STEPS
    assert_bitwise(there.coverage.hits.cpu(), here.coverage.hits)
    assert_bitwise(there.coverage.misses.cpu(), here.coverage.misses)
    torch.testing.assert_close(there.coverage.recent.cpu(), here.coverage.recent)


def test_poll_brings_the_last_but_one() -> None:
    vocab = ActiveVocab(VOCAB, 4, pinned=[1], device=DEVICE)
    coverage = Coverage(vocab)
    assert coverage.poll() is None
    coverage.count(torch.tensor([1, 2, 2, 2], device=DEVICE))
    torch.cuda.synchronize()
    first = coverage.poll()
    torch.cuda.synchronize()
    second = coverage.poll()
    assert first is not None and bool(first.isnan().all())
    assert second is not None and second.tolist() == [0.25] and second.device.type == "cpu"
