# SPDX-License-Identifier: Apache-2.0
"""What the drafter of vLLM's plugin learns from the target's steps."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from microspec_kernels.integrations.hooks import UnsupportedError
from microspec_kernels.integrations.vllm.drafter import Drafter
from microspec_kernels.integrations.vllm.metrics import Metrics

from .fake_vllm import installed
from .test_vllm_attach import DIM, OFFSETS, V, draft_model, drafter_of, learn


@pytest.fixture(autouse=True)
def _vllm() -> Any:
    with installed():
        yield


def logits_for(tokens: list[list[int]]) -> Tensor:
    """Return logits [R, V] whose order is, in each row, the given tokens by rising logit."""
    logits = torch.zeros(len(tokens), V)
    for row, best in enumerate(tokens):
        logits[row, best] = torch.arange(1.0, 1 + len(best))
    return logits


def step(
    drafter: Drafter,
    slots: list[int],
    sampled: list[list[int]],
    best: list[list[int]],
    lengths: Tensor | None = None,
) -> None:
    """Take a step with one row of logits for each slot."""
    drafter.keep(logits_for(best))
    drafter.observe(torch.tensor(sampled), slots, lengths, slots)


def active(drafter: Drafter, group: int = 0) -> set[int]:
    ids = drafter.head.vocab.ids[group]
    return set(drafter.head.token_map.to_tokens(ids[ids >= 0].long()).tolist())


def test_a_step_lets_in_the_targets_best_and_then_the_sampled() -> None:
    drafter = drafter_of(draft_model(), capacity=4)
    step(drafter, [0, 1], [[5, 6, -1], [7, -1, -1]], best=[[3], [4]])
    assert active(drafter) == {4, 5, 6, 7}  # the newest of 3 4 5 6 7


@pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["all", "d2t"])
@pytest.mark.parametrize("target_top_k", [0, 1, 2])
def test_what_lies_after_the_sampled_tokens_is_not_looked_at(
    offsets: Any, target_top_k: int
) -> None:
    """vLLM does not initialise it."""
    drafter = drafter_of(draft_model(offsets), capacity=6, target_top_k=target_top_k)
    strange = -(2**40) if target_top_k % 2 else 2**40
    lengths = torch.tensor([2, 0], dtype=torch.int32)
    step(drafter, [0, 1], [[2, 8, strange], [strange, 4, 4]], [[3, 2], [2, 3]], lengths)
    assert active(drafter) == {2, 8} | {0: set(), 1: {2, 3}, 2: {2, 3}}[target_top_k]


def test_several_of_the_targets_best() -> None:
    drafter = drafter_of(draft_model(), capacity=4, target_top_k=3)
    step(drafter, [0], [[1]], best=[[8, 9, 3, 4, 5]])
    assert active(drafter) == {1, 3, 4, 5}
    step(drafter, [0], [[-1]], best=[[6, 5, 4]])
    learn(drafter, torch.tensor([20]))
    assert active(drafter) == {20, 4, 5, 6}


def test_logits_are_read_before_a_sampler_writes_into_them() -> None:
    drafter = drafter_of(draft_model(), capacity=8)
    logits = logits_for([[3]])
    drafter.keep(logits)
    logits.copy_(logits_for([[9]]))
    drafter.observe(torch.full((1, 1), -1), [0])
    assert active(drafter) == {3}


def test_each_request_has_its_own() -> None:
    drafter = drafter_of(draft_model(), vocabulary="request", capacity=8)
    drafter.begin([2, 0], [torch.tensor([11, 12]), torch.tensor([], dtype=torch.int32)])
    step(drafter, [2, 0], [[5, -1], [7, 8]], best=[[3], [4]])
    assert active(drafter, 2) == {11, 12, 3, 5} and active(drafter, 0) == {4, 7, 8}
    drafter.begin([2], [torch.tensor([13])])
    assert active(drafter, 2) == {13} and active(drafter, 0) == {4, 7, 8}
    hidden = torch.randn(3, DIM)
    drafted = drafter.draft(hidden, torch.tensor([2, 0, -1])).tolist()
    assert drafted[0] == 13 and drafted[1] in {4, 7, 8} and drafted[2] == 0


def test_also_the_only_slot_begins_anew() -> None:
    drafter = drafter_of(draft_model(), slots=1, vocabulary="request", capacity=8)
    step(drafter, [0], [[5]], [[1]])
    drafter.begin([0], [torch.tensor([9])])
    assert active(drafter) == {9}


@pytest.mark.parametrize("slots", [1, 4])
def test_a_shared_one_goes_on_when_requests_come_and_go(slots: int) -> None:
    drafter = drafter_of(draft_model(), slots, capacity=8)
    step(drafter, [0], [[5]], [[1]])
    drafter.begin([0], [torch.tensor([9])])
    assert active(drafter) == {1, 5, 9}
    empty = torch.empty(0, dtype=torch.int64)
    drafter.begin([0, 1], [empty, empty])
    assert active(drafter) == {1, 5, 9}


def test_coverage_is_of_all_that_the_target_wrote() -> None:
    drafter = drafter_of(draft_model(), capacity=8, vocabulary="request")
    drafter.begin([0, 1], [torch.tensor([5, 6]), torch.tensor([5])])
    step(drafter, [0, 1], [[5, 7, 6], [5, 6, -1]], [[1], [1]])
    stats = drafter.stats()
    assert (stats["hits"], stats["misses"]) == (3, 2)
    step(drafter, [0, 1], [[7, -1, -1], [9, -1, -1]], [[1], [1]])
    assert (drafter.stats()["hits"], drafter.stats()["misses"]) == (4, 3)


def test_drafting_without_having_seen_the_target() -> None:
    drafter = drafter_of(draft_model())
    step(drafter, [0], [[5]], [[1]])
    with pytest.raises(
        UnsupportedError, match="the target's sampler: expected a call of it before draft"
    ):
        drafter.observe(torch.tensor([[5]]), [0])


@pytest.mark.parametrize("learning", [False, True])
def test_begins_anew_after_warming_up(
    learning: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "frequent.npy", np.array([3, 4]))
    drafter = drafter_of(
        draft_model(),
        capacity=2,
        learn=learning,
        frequent_tokens_file=str(tmp_path / "frequent.npy"),
    )
    told: list[str] = []
    monkeypatch.setattr(Metrics, "reset", lambda self: told.append("reset"))
    drafter.begin([0], [torch.tensor([7])])
    step(drafter, [0], [[5]], [[1]])
    assert 5 in active(drafter)
    drafter.reset()
    assert told == ["reset"]
    assert active(drafter) == {3, 4}
    if drafter.head.learning is not None:
        state = drafter.head.learning.lists.state_dict()
        assert not any(tensor.any() for tensor in state.values())
    nothing = {"hits": 0, "misses": 0, "active": 2, "dense_steps": 0, "coverage": None}
    assert drafter.stats() == nothing


def test_stats_are_told_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Metrics, "tick", lambda self: told.append("tick"))
    drafter = drafter_of(draft_model())
    step(drafter, [0], [[5]], [[1]])
    step(drafter, [0], [[6]], [[1]])
    assert told == ["tick", "tick"]
