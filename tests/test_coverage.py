# SPDX-License-Identifier: Apache-2.0
"""Coverage: hits and misses against a count in plain Python, and the reactions to a drop."""

import math
import re

import pytest
import torch
from compare import assert_bitwise
from hypothesis import given
from hypothesis import strategies as st

from microspec_kernels import ActiveVocab, Coverage, sparse_head

VOCAB = 20


def test_contains_of_a_ragged_batch() -> None:
    vocab = ActiveVocab(VOCAB, 4, num_groups=2)
    vocab.update(torch.tensor([[3, 5], [0, VOCAB - 1]]))
    tokens = torch.tensor([3, 3, 5, -1, 0, 3, -1, VOCAB - 1], dtype=torch.int32)
    groups = torch.tensor([0, 1, 0, 0, 1, -1, -1, 1])
    expected = [True, False, True, False, True, False, False, True]
    assert vocab.contains(tokens, token_groups=groups).tolist() == expected
    square, by = tokens.view(2, 4), groups.view(2, 4).int()
    assert vocab.contains(square, token_groups=by).flatten().tolist() == expected
    one = ActiveVocab(VOCAB, 4)
    one.update(torch.tensor([3]))
    assert one.contains(torch.tensor([3, 4]), token_groups=torch.tensor([0, 0])).tolist() == [1, 0]


@given(
    num_groups=st.integers(1, 3),
    half_life=st.floats(0.5, 100),
    seed=st.integers(0, 10**6),
)
def test_counts_are_those_of_the_definition(num_groups: int, half_life: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    vocab = ActiveVocab(VOCAB, 5, num_groups=num_groups, pinned=[2])
    coverage = Coverage(vocab, half_life=half_life)
    hits, misses = [0] * num_groups, [0] * num_groups
    fading = [[0.0, 0.0] for _ in range(num_groups)]
    assert coverage.share.isnan().all() and coverage.recent.isnan().all()
    for step in range(8):
        ragged = bool(step % 2)
        shape = (9,) if ragged else (num_groups, 4)
        tokens = torch.randint(-1, 8, shape, generator=rng)
        which = torch.randint(-1, num_groups, shape, generator=rng) if ragged else None
        coverage.count(tokens, token_groups=which)

        active = [set(ids.tolist()) - {-1} for ids in vocab.ids]
        each = torch.arange(num_groups)[:, None].expand(shape) if which is None else which
        pairs = list(zip(tokens.flatten().tolist(), each.flatten().tolist(), strict=True))
        for group in range(num_groups):
            judged = [t in active[group] for t, g in pairs if g == group and t >= 0]
            hits[group] += sum(judged)
            misses[group] += len(judged) - sum(judged)
            kept = 0.5 ** (len(judged) / half_life)
            old = fading[group]
            fading[group] = [old[0] * kept + sum(judged), old[1] * kept + len(judged)]
        vocab.update(tokens, token_groups=which)

    assert coverage.hits.tolist() == hits and coverage.misses.tolist() == misses
    assert coverage.hits.dtype == coverage.misses.dtype == torch.int64
    for group in range(num_groups):
        seen = hits[group] + misses[group]
        share = hits[group] / seen if seen else math.nan
        assert float(coverage.share[group]) == pytest.approx(share, nan_ok=True)
        recent = fading[group][0] / fading[group][1] if seen else math.nan
        assert float(coverage.recent[group]) == pytest.approx(recent, rel=1e-4, nan_ok=True)
    polled = coverage.poll()
    assert polled is not None
    assert_bitwise(polled, coverage.recent)

    coverage.reset([0])
    assert (coverage.hits.tolist(), coverage.misses.tolist()) == ([0, *hits[1:]], [0, *misses[1:]])
    assert coverage.recent[0].isnan()
    assert_bitwise(coverage.recent[1:], polled[1:])
    coverage.reset()
    assert coverage.share.isnan().all() and coverage.recent.isnan().all()


def test_only_the_tokens_count_that_a_dense_draft_got_accepted() -> None:
    vocab = ActiveVocab(VOCAB, 4, num_groups=2)
    vocab.update(torch.tensor([[3, 5], [7, 9]]))
    coverage, tokens = Coverage(vocab), torch.tensor([[3, 4, 5], [3, 9, -1]])
    coverage.count(tokens, counted=torch.tensor([[True, True, False], [False, True, False]]))
    assert (coverage.hits.tolist(), coverage.misses.tolist()) == ([1, 1], [1, 0])
    groups = torch.tensor([0, 1, -1])
    coverage.count(groups + 4, token_groups=groups, counted=torch.tensor([True, False, True]))
    assert (coverage.hits.tolist(), coverage.misses.tolist()) == ([1, 1], [2, 0])


def test_a_token_counts_half_after_the_half_life() -> None:
    vocab = ActiveVocab(VOCAB, 5, pinned=[1])
    coverage = Coverage(vocab, half_life=4)
    coverage.count(torch.tensor([1, 1]))
    coverage.count(torch.tensor([2, 3, -1, 2, 3]))
    assert float(coverage.share) == pytest.approx(2 / 6)
    assert float(coverage.recent) == pytest.approx(1 / 5)


def test_falls_back_group_by_group_and_returns() -> None:
    """Run the docstring's loop: the subject of one of two requests changes and then returns."""
    small, large = (ActiveVocab(VOCAB, k, num_groups=2) for k in (3, 12))
    coverage = Coverage(small, half_life=4)
    weight, hidden = torch.randn(VOCAB, 8), torch.randn(2, 8)
    here = torch.arange(2)
    for vocab in (small, large):  # so that their contents differ
        vocab.update(torch.tensor([[10, 11, 12, 13]] * 2))
    sides = []
    steady, cycle = [1, 2], [[4, 5, 6], [7, 8, 9]]
    texts = [steady] * 3 + cycle * 3 + [steady] * 6
    for text in texts:
        ids = coverage.fall_back(large, below=0.5)
        assert ids.shape == (2, 12) and ids.dtype == torch.int32
        fallen = [float(share) < 0.5 for share in coverage.recent]
        active = [set(row.tolist()) - {-1} for row in ids]
        assert active == [
            set((large if fell else small).ids[group].tolist()) - {-1}
            for group, fell in enumerate(fallen)
        ]
        if min(map(len, active)):
            _, tokens, _ = sparse_head(hidden, weight, ids, 3, group_ids=here)
            assert all(
                set(row.tolist()) - {-1} <= who for row, who in zip(tokens, active, strict=True)
            )
        sides.append(fallen[0])
        step = torch.tensor([text, (steady * 2)[: len(text)]])
        coverage.count(step)
        small.update(step)
        large.update(step)
        assert not fallen[1] or len(sides) == 2, "the other request stays with its own"
    assert re.fullmatch("sLss?L{6,}s+", "".join("sL"[fell] for fell in sides))


def test_nothing_reads_a_value() -> None:
    """A meta tensor has no values."""
    small, large = (ActiveVocab(VOCAB, k, num_groups=2) for k in (3, 12))
    for vocab in (small, large):
        vocab.ids, vocab.token_slots = vocab.ids.to("meta"), vocab.token_slots.to("meta")
    coverage = Coverage(small)
    groups = torch.zeros(6, dtype=torch.int32, device="meta")
    coverage.count(torch.zeros(2, 5, dtype=torch.int64, device="meta"))
    coverage.count(torch.zeros(6, dtype=torch.int32, device="meta"), token_groups=groups)
    assert coverage.fall_back(large, below=0.9).shape == (2, 12)
    assert coverage.share.device.type == coverage.recent.device.type == "meta"


def test_counters_stay_where_a_graph_captured_them() -> None:
    coverage = Coverage(ActiveVocab(VOCAB, 3))
    held = [coverage.hits, coverage.misses]
    coverage.count(torch.tensor([1, -1]))
    coverage.reset()
    coverage.count(torch.tensor([1, -1]))
    assert [t.tolist() for t in held] == [[0], [1]]
    assert coverage.hits is held[0] and coverage.misses is held[1]


def test_what_is_refused() -> None:
    vocab = ActiveVocab(VOCAB, 3, num_groups=2)
    with pytest.raises(ValueError, match="Coverage: half_life: expected above 0, got 0"):
        Coverage(vocab, half_life=0)
    for other in (ActiveVocab(VOCAB, 2, num_groups=2), ActiveVocab(VOCAB, 9)):
        expected = f"expected 2 groups of capacity >= 3, got {other.num_groups} of {other.capacity}"
        with pytest.raises(ValueError, match=re.escape(f"fall_back: larger: {expected}")):
            Coverage(vocab).fall_back(other, below=0.9)
