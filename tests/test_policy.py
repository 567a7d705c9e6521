# SPDX-License-Identifier: Apache-2.0
"""Policies: the tokens of each source and their order, without reads from the host."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microspec_kernels import ActiveVocab, policy
from microspec_kernels.policy import Policy, Source, TargetPass

VOCAB = 97


def seen(stage: str = "step", rows: int = 3, best: int = 3, device: str = "cpu") -> TargetPass:
    """Return a pass: tokens 10, 11, ..., likeliest 10 r, 10 r + 1, ... at row r, path 11, 12."""
    every = torch.arange(rows)
    chosen = torch.where(every < 2, 11 + every, -1)
    likeliest = 10 * every[:, None] + torch.arange(best)
    return TargetPass(stage, *(t.to(device) for t in (10 + every, likeliest, chosen)))


@pytest.mark.parametrize(
    ("source", "stage", "taken"),
    [
        (policy.prompt(), "prompt", [[10], [11], [12]]),
        (policy.generated(), "step", [[11], [12], [-1]]),
        (policy.draft_tree(), "step", [[10], [11], [12]]),
        (policy.target_top_k(2), "step", [[1, 0], [11, 10], [21, 20]]),
        (policy.target_top_k(9), "step", [[2, 1, 0], [12, 11, 10], [22, 21, 20]]),
        (policy.prompt_top_k(2), "prompt", [[1, 0], [11, 10], [21, 20]]),
        (policy.prompt_top_k(2, "last"), "prompt", [[-1, -1], [-1, -1], [21, 20]]),
        (policy.generated(1), "step", [[-1], [12], [-1]]),
        (policy.target_top_k(2, budget=3), "step", [[-1, -1], [-1, 10], [21, 20]]),
    ],
    ids=lambda value: value.name if isinstance(value, Source) else "",
)
def test_what_a_source_takes(source: Source, stage: str, taken: list[list[int]]) -> None:
    assert source.stage == stage
    assert source.tokens(seen(stage)).tolist() == taken


def test_a_policy_takes_row_by_row_the_last_source_last() -> None:
    both = Policy((policy.target_top_k(2), policy.generated(), policy.prompt()))
    assert both.select(seen("step")).tolist() == [1, 0, 11, 11, 10, 12, 21, 20, -1]
    assert both.select(seen("prompt")).tolist() == [10, 11, 12]
    assert Policy(()).select(seen()).shape == (0,)
    assert both.select(seen("step")).dtype == torch.int64


def test_best_rows_and_name() -> None:
    last, every = policy.prompt_top_k(5, "last"), policy.prompt_top_k(3)
    assert [Policy((last, every)).target_top_k(stage) for stage in ("prompt", "step")] == [5, 0]
    asked = [(), (policy.prompt(),), (policy.prompt(), last), (last, every)]
    assert [Policy(s).prompt_rows for s in asked] == ["none", "none", "last", "all"]
    named = Policy((policy.prompt(7), *policy.TEXT, policy.generated()), pinned=torch.arange(4))
    assert named.name == "prompt=7+prompt+generated+pin4"


@given(
    rows=st.lists(st.lists(st.integers(-1, 20), min_size=3, max_size=3), max_size=6),
    budget=st.integers(1, 20),
)
def test_a_budget_keeps_the_newest(rows: list[list[int]], budget: int) -> None:
    table = torch.tensor(rows, dtype=torch.int64).view(len(rows), 3)
    source = Source("any", "step", lambda target_pass: table, budget)
    kept, left = [], budget
    for token in reversed(table.flatten().tolist()):
        kept.insert(0, token if token >= 0 and left > 0 else -1)
        left -= token >= 0
    assert source.tokens(seen()).flatten().tolist() == kept


def test_microspec_is_prompt_tree_and_top_3_with_the_likeliest_newest() -> None:
    vocab, whole = ActiveVocab(VOCAB, 40), Policy(policy.MICROSPEC)
    assert (whole.target_top_k("prompt"), whole.prompt_rows, whole.target_top_k("step")) == (
        3,
        "all",
        3,
    )
    for stage in ("prompt", "step"):
        vocab.reset()
        vocab.update(whole.select(seen(stage, best=5)))
        top3 = {10 * row + rank for row in range(3) for rank in range(3)}
        assert set(vocab.ids[vocab.ids >= 0].tolist()) == {10, 11, 12} | top3
        assert vocab.ids[0, vocab.slot_stamps[0].topk(4).indices].tolist() == [20, 21, 22, 12]


def test_default_begins_filled_or_is_microspecs() -> None:
    assert policy.default().name == "prompt+prompt_top3+tree+top3+generated"
    assert len(policy.default().frequent_tokens) == 0
    filled = policy.default([5, 4])
    assert filled.name == "prompt+top3+generated+filled"
    assert filled.frequent_tokens == [5, 4]
    assert filled.prompt_rows == "none", "no logits of the prompt's rows"
    assert len(filled.pinned) == len(policy.default().pinned) == 0


def every_source() -> list[Source]:
    every = [*policy.MICROSPEC, *policy.TEXT, policy.prompt_top_k(2, "last")]
    return [Source(**(vars(s) | {"budget": b})) for s in every for b in (None, 2)]


@pytest.mark.parametrize("source", every_source(), ids=lambda s: f"{s.name}-{s.budget}")
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_no_source_reads_a_value(source: Source, rows: int) -> None:
    """A meta tensor has no values: a source that reads one, or a shape from one, fails."""
    for best in {source.target_top_k, 0}:
        one = seen(source.stage, rows, best, device="meta")
        taken = Policy((source,)).select(one)
        assert taken.device.type == "meta" and taken.dtype == torch.int64
        assert len(taken) % max(1, rows) == 0


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (
            lambda: Source("x", "draft", policy.prompt().select),
            ValueError,
            "Source: stage: expected",
        ),
        (lambda: policy.prompt(0), ValueError, "Source: budget: expected at least 1 or None"),
        (
            lambda: policy.target_top_k(-1),
            ValueError,
            "Source: target_top_k: expected at least 0, got -1",
        ),
        (
            lambda: policy.prompt_top_k(3, "first"),
            ValueError,
            "Source: prompt_rows: expected 'all'",
        ),
    ],
)
def test_what_is_refused(build: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        build()  # type: ignore[operator]
