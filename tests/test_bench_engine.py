# SPDX-License-Identifier: Apache-2.0
"""bench/decoding/engine_overhead.py times an engine's work, and stops at a wrong head."""

import csv
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from known_times import COLUMNS, KnownTimes

from bench.decoding import engine_gather
from bench.decoding import engine_overhead as engine
from bench.harness import models, options
from bench.harness.inputs import make_weight


@pytest.mark.skipif(torch.cuda.is_available(), reason="a run on the CPU")
def test_a_quick_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = KnownTimes()
    monkeypatch.setattr(engine, "time_arms", timed)
    monkeypatch.setattr(sys, "argv", ["engine", "--quick", "--out", str(tmp_path)])
    options.run("As", "engine", partial(engine.measure, "cpu"), partial(engine.measure, "cuda"))
    rows = list(csv.DictReader((tmp_path / "engine.csv").open()))
    assert {row["requests"] for row in rows} == {"1", "8"}
    for row, (arm, took) in zip(rows, timed.columns(), strict=True):
        assert arm == (row["vocabulary"], row["arm"])
        assert [float(row[column]) for column in COLUMNS] == pytest.approx(took)
        assert row["device"] and row["commit"]
        is_head = "LM head" in row["arm"] or "EngineHead" in row["arm"]
        assert row["times_a_step"] == str(engine.DRAFTS if is_head else 1)
        if "observe" in row["arm"]:
            assert float(row["rows_entered"]) >= engine.NEW * int(row["requests"]) * 0.8
    several = [row["vocabulary"] for row in rows if row["arm"] == "figures"]
    assert several == ["shared", "shared", "request"]


@pytest.mark.parametrize("vocabulary", ["shared", "request"])
@pytest.mark.parametrize("best", [1, 3])
def test_a_step_has_its_tokens(vocabulary: str, best: int) -> None:
    """Requests have equally many tokens; coverage counts the last tokens of each step."""
    weight = make_weight(models.TOY.vocab_size, models.TOY.dim)
    head = engine.make_head(weight, 4, 300, vocabulary=vocabulary)
    observing = engine.Observing(head, 4, best)
    rows = 4 * (engine.DRAFTS + 1)
    observing()
    stats = head.stats()
    assert stats is not None
    assert stats.hits + stats.misses == rows
    assert stats.active == 300 * head.vocab.num_groups
    assert {len(tokens) for tokens in observing.sets} == {rows * (best + 1)}
    for tokens in observing.sets[1:]:
        groups = observing.token_requests % head.vocab.num_groups
        absent = ~head.vocab.contains(tokens, token_groups=groups)
        assert 0 < int(absent.sum()) <= 30
    assert observing.token_requests.bincount().tolist() == [6 * (best + 1)] * 4


@pytest.mark.parametrize("mode", ["indexed", "packed"])
def test_a_wrong_head_is_refused(mode: str) -> None:
    weight = make_weight(models.TOY.vocab_size, models.TOY.dim)
    head = engine.make_head(weight, 1, 300, mode=mode)
    hidden = torch.randn(4, models.TOY.dim).to(weight.dtype)
    logits = hidden.float() @ weight.float().T
    engine.check(head, logits, hidden, None)
    with pytest.raises(AssertionError, match="not the best active token"):
        engine.check(head, -logits, hidden, None)
    head.vocab.ids.copy_(head.vocab.ids.roll(-1))  # slots and ids now disagree
    head.vocab.token_slots.fill_(-1)
    with pytest.raises(AssertionError, match="not an active token"):
        engine.check(head, logits, hidden, None)


def test_steps_with_a_gather() -> None:
    """Both ways copy the step's rows; without the gather the slab stays as it was."""
    weight = make_weight(models.TOY.vocab_size, models.TOY.dim)
    steps = engine.gather_steps(models.TOY, weight, 2, 300)
    assert tuple(steps) == engine_gather.ARMS
    for arm, step in steps.items():
        before = step.slab.ids.clone()
        drafted = step()
        assert bool(step.head.vocab.contains(drafted).all()) or arm == engine_gather.NONE
        assert torch.equal(step.slab.ids, step.head.vocab.ids) == (arm != engine_gather.NONE)
        assert torch.equal(step.slab.ids, before) == (arm == engine_gather.NONE)
        assert len(step.slots) == 2 * engine.NEW
    rows = engine_gather.timelines(steps)
    for arm in engine_gather.ARMS[:2]:
        parts = {row["part"] for row in rows if row["arm"] == arm}
        assert parts == {"vocabulary", "gather", "layer", "head"}
    assert len(rows) == 8
