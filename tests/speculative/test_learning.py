# SPDX-License-Identifier: Apache-2.0
"""The sparse head begins a text with the tokens of the texts before it."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels._checks import PINNED_STAMP
from microspec_kernels.policy import FLOOR_SHARE, LearnedLists, Policy, generated
from microspec_kernels.speculative import (
    Batch,
    CausalModel,
    LMHead,
    Request,
    Sampling,
    Sparse,
    generate,
    learned_lists,
)

from .models import VOCAB, eagle, example, noisy, prompt
from .schedule import SHAPE, Text, run

FREQUENT = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(7))
CAPACITY = 40
# They join one after the other; one has no step, and the others end at different steps.
TEXTS = [Text(9, 12), Text(21, 7), Text(4, 1), Text(14, 12, joins=3), Text(9, 12, joins=9)]


@pytest.fixture
def target() -> CausalModel:
    return CausalModel(example("llama")[0])


def texts_with(requests: list[Request]) -> Counter[int]:
    """Count in how many texts each token stands; a text without a step teaches nothing."""
    return Counter(token for one in requests if len(one.tokens) > 1 for token in set(one.tokens))


def counts_of(lists: LearnedLists) -> Counter[int]:
    counts = lists.text_counts.sum(0).tolist()
    return Counter({token: count for token, count in enumerate(counts) if count})


def in_order(counts: Counter[int]) -> list[int]:
    """Order all tokens by the number of texts, then as in FREQUENT."""
    return sorted(range(VOCAB), key=lambda token: (-counts[token], FREQUENT.tolist().index(token)))


def active(batch: Batch, group: int = 0) -> set[int]:
    assert isinstance(batch.head, Sparse)
    return set(batch.head.vocab.ids[group].tolist())


@pytest.mark.parametrize("num_groups", [1, 3])
def test_whole_texts_are_counted_once(num_groups: int, target: CausalModel) -> None:
    """Also where an end-of-text token or the limit cuts the last step's tokens off."""
    target.eos = frozenset(range(0, VOCAB, 23))
    draft = noisy(example("llama")[0])
    lists = learned_lists(target, draft, FREQUENT)
    requests = run(Batch(target, draft, learn=lists, num_groups=num_groups, **SHAPE), TEXTS)
    assert counts_of(lists) == texts_with(requests)
    assert int(lists.num_texts.sum()) == sum(len(one.tokens) > 1 for one in requests)
    if num_groups == 1:
        assert lists.num_requests == 2  # grown to the texts that ran together


@pytest.mark.parametrize("mode", ["indexed", "packed"])
@pytest.mark.parametrize("num_lists", [1, 3])
def test_a_text_begins_with_the_tokens_of_the_most_texts(
    num_lists: int, mode: Any, target: CausalModel
) -> None:
    """The text itself then replaces some; with several lists, by the counts of the list chosen."""
    draft = eagle(target)
    lists, texts = learned_lists(target, draft, FREQUENT, num_lists=num_lists), []
    batch = Batch(
        target, draft, learn=lists, capacity=CAPACITY, mode=mode,
        policy=Policy((generated(),)), **SHAPE,
    )  # fmt: skip
    for seed in range(4):
        request = batch.join(prompt(9 + seed, seed), 10)
        own = Counter(dict(enumerate(lists.text_counts[lists.request_lists[0]].tolist())))
        total = counts_of(lists)
        order = sorted(in_order(total), key=lambda token, own=own: -own[token])
        assert active(batch) == set(order[:CAPACITY])
        if num_lists == 1:
            assert order == in_order(texts_with(texts))
        while batch.requests:
            batch.step()
        assert active(batch) != set(order[:CAPACITY])
        texts.append(request)
        assert request.tokens == generate(target, draft, prompt(9 + seed, seed), 10).tokens.tolist()
    assert len(counts_of(lists)) > 10


def test_texts_that_run_together_share_a_floor(
    target: CausalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second on; of a long prompt, the newest sixth of K tokens enter."""
    batch = Batch(target, eagle(target), capacity=CAPACITY, frequent_tokens=FREQUENT, **SHAPE)
    assert isinstance(batch.head, Sparse)
    stamps = batch.head.vocab.slot_stamps
    batch.join(prompt(9), 20)
    assert int((stamps == PINNED_STAMP).sum()) == 0
    told: list[Tensor] = []
    observe = batch.head.observe
    monkeypatch.setattr(batch.head, "observe", lambda *of: (told.append(of[0]), observe(*of)))
    batch.join(prompt(300, seed=5), 20)
    assert torch.equal(told[0], prompt(300, seed=5)[0, -int(CAPACITY / 6) :])
    floor = int(FLOOR_SHARE * CAPACITY)
    assert int((stamps == PINNED_STAMP).sum()) == floor
    assert active(batch) >= set(FREQUENT[:floor].tolist())


def test_nothing_is_learned_if_not_asked(target: CausalModel) -> None:
    options = {"capacity": CAPACITY, "learn": False, **SHAPE}
    empty = Batch(target, eagle(target), **options)
    filled = Batch(target, eagle(target), frequent_tokens=FREQUENT, **options)
    for batch, begins in ((empty, {-1}), (filled, set(FREQUENT[:CAPACITY].tolist()))):
        assert active(batch) == begins
        run(batch, TEXTS[:2])
        assert isinstance(batch.head, Sparse)
        assert int((batch.head.vocab.slot_stamps == PINNED_STAMP).sum()) == 0


def test_rows_without_a_token_never_enter(target: CausalModel) -> None:
    """A draft's own rows, of which one is broken and one has no token."""
    draft = eagle(target)
    token_rows = torch.full((VOCAB,), -1)
    token_rows[FREQUENT[:60]] = torch.arange(60)
    weight = target.lm_head.weight[FREQUENT[:61]].detach().clone()
    weight[5] = torch.nan
    draft.lm_head = LMHead(weight, token_rows=token_rows)
    lists = learned_lists(target, draft)
    batch = Batch(target, draft, learn=lists, **SHAPE)
    requests = run(batch, TEXTS)
    assert isinstance(batch.head, Sparse)
    assert active(batch) == set(range(60)) - {5}
    rows = {int(token_rows[token]) for one in requests for token in one.tokens[:12]}
    assert set(counts_of(lists)) <= rows - {-1, 5}
    with_steps = [one for one in requests if len(one.tokens) > 1]
    expected = Counter(
        row for one in with_steps for row in {int(token_rows[token]) for token in one.tokens}
    )
    assert counts_of(lists) == Counter({r: n for r, n in expected.items() if r not in (-1, 5)})


def test_chains_need_other_seeds_than_any_text_before(target: CausalModel) -> None:
    """What an earlier text taught was drawn by its seed's numbers."""
    for num_groups in (1, 2):
        batch = Batch(
            target, eagle(target), sampling=Sampling(1.0), chain=True, depth=3, capacity=CAPACITY,
            num_groups=num_groups,
        )  # fmt: skip
        run(batch, [Text(9, 3, seed=1), Text(9, 3, seed=2)])
        with pytest.raises(ValueError, match=r"seed: expected one each .* got 1 again"):
            batch.join(prompt(9), 3, seed=1)
