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
from .test_vllm_attach import DIM, V, draft_model, drafter_of, learn


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
    text: list[int],
    slots: list[int],
    sampled: list[list[int]],
    best: list[list[int]] | None = None,
    drafted: list[bool] | None = None,
) -> None:
    """Take a step over one row of logits and one token of text for each slot."""
    groups = torch.tensor(slots)
    drafter.keep(logits_for(best or [[token] for token in text]), groups)
    verified = torch.tensor(drafted or [True] * len(slots))
    drafter.observe(
        torch.tensor(text), torch.tensor(sampled), verified, groups, torch.ones_like(groups)
    )


def active(drafter: Drafter, group: int = 0) -> set[int]:
    ids = drafter.head.vocab.ids[group]
    return set(drafter.head.token_map.to_tokens(ids[ids >= 0].long()).tolist())


def test_a_step_lets_in_the_text_the_targets_best_and_the_sampled() -> None:
    drafter = drafter_of(draft_model(), capacity=4)
    step(drafter, [1, 2], [0, 1], [[5, 6, -1], [7, -1, -1]], best=[[3], [4]])
    assert active(drafter) == {4, 5, 6, 7}  # the newest of 1 2 3 4 5 6 7


def test_the_likeliest_of_several_is_the_newest() -> None:
    drafter = drafter_of(draft_model(), capacity=4, target_top_k=3)
    step(drafter, [1], [0], [[-1]], best=[[8, 9, 3, 4, 5]])
    assert active(drafter) == {1, 3, 4, 5}
    step(drafter, [1], [0], [[-1]], best=[[6, 5, 4]])
    learn(drafter, torch.tensor([20, 21]))
    assert active(drafter) == {4, 5, 20, 21}


def test_logits_are_read_before_a_sampler_writes_into_them() -> None:
    drafter = drafter_of(draft_model(), capacity=8)
    logits = logits_for([[3]])
    drafter.keep(logits, torch.zeros(1))
    logits.copy_(logits_for([[9]]))
    none = torch.full((1, 1), -1)
    groups = torch.zeros(1, dtype=torch.int64)
    drafter.observe(groups[:0], none, torch.tensor([True]))
    assert active(drafter) == {3}


def test_each_request_has_its_own() -> None:
    drafter = drafter_of(draft_model(), vocabulary="request", capacity=8)
    drafter.begin([2, 0], [[11, 12], []])
    step(drafter, [1, 2], [2, 0], [[5, -1], [7, 8]], best=[[3], [4]])
    assert active(drafter, 2) == {11, 12, 1, 3, 5} and active(drafter, 0) == {2, 4, 7, 8}
    drafter.begin([2], [[13]])
    assert active(drafter, 2) == {13} and active(drafter, 0) == {2, 4, 7, 8}
    hidden = torch.randn(3, DIM)
    drafted = drafter.draft(hidden, torch.tensor([2, 0, -1])).tolist()
    assert drafted[0] == 13 and drafted[1] in {2, 4, 7, 8} and drafted[2] == 0


def test_also_the_only_slot_begins_anew() -> None:
    drafter = drafter_of(draft_model(), slots=1, vocabulary="request", capacity=8)
    step(drafter, [1], [0], [[5]])
    drafter.begin([0], [[9]])
    assert active(drafter) == {9}


def test_a_shared_one_goes_on_when_requests_come_and_go() -> None:
    drafter = drafter_of(draft_model(), capacity=8)
    step(drafter, [1], [3], [[5]])
    drafter.begin([3], [[9]])
    assert active(drafter) == {1, 5, 9}
    drafter.begin([0, 1], [[], []])
    assert active(drafter) == {1, 5, 9}


def test_coverage_is_of_tokens_that_were_drafted_for() -> None:
    drafter = drafter_of(draft_model(), capacity=8, vocabulary="request")
    drafter.begin([0, 1], [[5, 6], [5]])
    step(drafter, [1, 1], [0, 1], [[5, 7, 6], [5, 6, -1]], drafted=[True, False])
    stats = drafter.stats()
    assert (stats["hits"], stats["misses"]) == (2, 1)
    step(drafter, [1, 1], [0, 1], [[7, -1, -1], [9, -1, -1]], drafted=[True, True])
    assert (drafter.stats()["hits"], drafter.stats()["misses"]) == (3, 2)


def test_drafting_without_having_seen_the_target() -> None:
    drafter = drafter_of(draft_model())
    step(drafter, [1], [0], [[5]])
    groups = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(
        UnsupportedError, match="the target's sampler: expected a call of it before draft"
    ):
        drafter.observe(groups, groups[:, None], groups > 0)


def test_begins_anew_after_warming_up(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "frequent.npy", np.array([3, 4]))
    drafter = drafter_of(
        draft_model(), capacity=2, frequent_tokens_file=str(tmp_path / "frequent.npy")
    )
    told: list[str] = []
    monkeypatch.setattr(Metrics, "reset", lambda self: told.append("reset"))
    step(drafter, [1], [0], [[5]])
    assert active(drafter) == {1, 5}
    drafter.reset()
    assert told == ["reset"]
    assert active(drafter) == {3, 4}
    assert drafter.stats() == {
        "hits": 0, "misses": 0, "rows_activated": 0, "active": 2, "coverage": None
    }  # fmt: skip


def test_stats_are_told_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Metrics, "tick", lambda self: told.append("tick"))
    drafter = drafter_of(draft_model())
    step(drafter, [1], [0], [[5]])
    step(drafter, [5], [0], [[6]])
    assert told == ["tick", "tick"]
