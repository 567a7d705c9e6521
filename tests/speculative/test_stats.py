# SPDX-License-Identifier: Apache-2.0
"""The figures that a generation reports about itself."""

import json
import math
from typing import Any

import pytest
import torch

from microspec_kernels.speculative import Stats, generate
from microspec_kernels.speculative.stats import coverage_of, coverage_of_accepted

from .models import VOCAB, example, noisy

FREQUENT = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(7))
PARTS = {"prefill", "draft_layer", "head", "vocabulary", "tree", "verify"}


@pytest.mark.parametrize("head", ["dense", "static", "sparse"])
def test_counts_and_times_add_up(head: Any) -> None:
    model, text, truth = example("llama")
    result = generate(
        model, noisy(model), text, len(truth), head=head, capacity=90, frequent_tokens=FREQUENT,
        timed=True,
    )  # fmt: skip
    stats, lengths = result.stats, result.acceptance_lengths
    assert 1 + sum(lengths) == len(truth)
    assert stats.steps == len(lengths) == len(stats.active_sizes)
    assert stats.tau == pytest.approx(sum(lengths) / len(lengths))
    assert sum(stats.histogram.values()) == stats.steps
    assert sum(length * count for length, count in stats.histogram.items()) == sum(lengths)
    assert stats.seconds.keys() == PARTS | {"total"}
    assert all(stats.seconds[part] > 0 for part in PARTS)
    parts = sum(stats.seconds[part] for part in PARTS)
    assert 0.5 * stats.seconds["total"] < parts <= stats.seconds["total"]
    size = {"dense": VOCAB, "static": 90}.get(head)
    assert size is None or (stats.active_mean, stats.active_max) == (size, size)
    assert 0 < stats.active_mean <= stats.active_max <= (size or 90)
    proposable = {"dense": set(range(VOCAB)), "static": set(FREQUENT[:90].tolist())}.get(head)
    if proposable is not None:
        covered = [token in proposable for token in truth[1:].tolist()]
        assert stats.coverage == pytest.approx(sum(covered) / len(covered))
    assert json.loads(json.dumps(stats.as_dict()))["tau"] == stats.tau


def test_nothing_drafted_divides_by_nothing() -> None:
    stats = Stats()
    assert (stats.steps, stats.tau, stats.coverage, stats.histogram) == (0, 0.0, 0.0, {})
    assert (stats.active_mean, stats.active_max) == (0.0, 0)


def test_only_the_tokens_that_a_dense_head_got_accepted_count() -> None:
    """A step's last token was not drafted; the first text's second step drafted one."""
    active = [[True, False, False, True, False], [False]]
    texts = [Stats([2, 3], covered=active[0]), Stats([1], covered=active[1])]
    dense = [Stats([3, 2]), Stats([1])]
    assert coverage_of_accepted(texts, dense) == pytest.approx(2 / 3)  # tokens 0, 1 and 3
    assert coverage_of(texts) == pytest.approx(2 / 6)
    assert math.isnan(coverage_of_accepted(texts[1:], dense[1:]))


def test_the_bar_shows_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    model, text, _ = example("llama")
    generate(model, model, text, 6)
    assert capsys.readouterr().err == ""
    generate(model, model, text, 6, progress=True)
    assert "6/6" in capsys.readouterr().err
