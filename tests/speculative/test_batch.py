# SPDX-License-Identifier: Apache-2.0
"""Texts in a batch equal the texts alone, whichever others join, leave or break."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels.policy import MICROSPEC, Policy
from microspec_kernels.speculative import Batch, CausalModel, Request, Sampling
from microspec_kernels.speculative import step as loop

from .models import KINDS, VOCAB, Spy, eagle, example, prompt
from .paths import Path, captured, plain
from .schedule import LONGEST, SHAPE, Text, draft_of, figures, pair, run, truth
from .test_cache import poison

FREQUENT = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(7))
LENGTHS = (9, 21, 4, 14)

a_text = st.builds(
    Text,
    length=st.sampled_from(LENGTHS),
    count=st.integers(0, LONGEST),
    joins=st.integers(0, 4),
    seed=st.sampled_from([0, 1, 2**64 - 1]),
)


schedules = given(
    kind=st.sampled_from(KINDS),
    texts=st.lists(a_text, min_size=1, max_size=4),
    head=st.sampled_from(["dense", "static", "sparse", "sparse"]),
    num_groups=st.integers(1, 4),
    capacity=st.integers(8, VOCAB),
    mode=st.sampled_from(["indexed", "packed"]),
    temperature=st.sampled_from([0.0, 0.0, 1.5]),
    chain=st.booleans(),
    learn=st.booleans(),
    ends=st.sets(st.integers(0, VOCAB - 1), max_size=20),
)


@settings(max_examples=40, deadline=None)
@schedules
def test_any_schedule_gives_the_texts_that_each_has_alone(**drawn: Any) -> None:
    check_schedule(plain, **drawn)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")
@settings(max_examples=6, deadline=None)
@schedules
def test_any_schedule_gives_them_by_replayed_graphs(**drawn: Any) -> None:
    # Some schedules are too short for a replay.
    check_schedule(lambda: captured(pytest.MonkeyPatch(), replays=0), **drawn)


def check_schedule(
    path: Path,
    kind: str,
    texts: list[Text],
    head: Any,
    num_groups: int,
    capacity: int,
    mode: Any,
    temperature: float,
    chain: bool,
    learn: bool,
    ends: set[int],
) -> None:
    model, draft = example(kind)[0], draft_of(kind)
    options = {
        **SHAPE, "head": head, "capacity": capacity, "frequent_tokens": FREQUENT, "mode": mode,
        # At a temperature, chains follow the target's distribution but draw other samples than the
        # target alone.
        "sampling": Sampling(temperature), "chain": chain and temperature == 0, "learn": learn,
    }  # fmt: skip
    texts = sorted(texts, key=lambda text: text.joins)
    with path() as put:
        target = CausalModel(put(model))
        target.eos = frozenset(ends)
        requests = run(Batch(target, put(draft), num_groups=num_groups, **options), texts)
    for text, request in zip(texts, requests, strict=True):
        expected = truth(kind, text.length, Sampling(temperature, seed=text.seed))[: text.count]
        end = next((place for place, token in enumerate(expected) if token in ends), len(expected))
        assert request.tokens == expected[: end + 1]
        assert request.done and request.result().tokens.tolist() == request.tokens
        if head == "sparse" and (num_groups == 1 or learn):
            continue  # the vocabulary contains tokens of other texts
        own_batch = Batch(*pair(kind, ends), num_groups=2, **options)
        (alone,) = run(own_batch, [replace(text, joins=0)])
        assert figures(request) == figures(alone)


class Witness:
    """Record each text's tree, the draft's features and the vocabulary at every step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.notes: dict[Request, list[tuple[Any, Tensor]]] = {}
        self.batch: Batch
        grow = loop.grow

        def noted(roots: Tensor, features: Tensor, *rest: Any) -> Any:
            tree = grow(roots, features, *rest)
            sets = self.batch.head.active_sets()  # type: ignore[attr-defined]
            for request in self.batch.requests:
                text = request.row
                size = int(tree.sizes[text])
                exact = (
                    tree.tokens[text, :size].tolist(),
                    tree.parents[text, :size].tolist(),
                    tree.ancestor_mask[text, :size, :size].tolist(),
                    sets[request.group],
                )
                self.notes.setdefault(request, []).append((exact, features[text].clone()))
            return tree

        monkeypatch.setattr(loop, "grow", noted)

    def run(self, batch: Batch, texts: list[Text], **options: Any) -> list[Request]:
        self.batch = batch
        return run(batch, texts, **options)

    def check_alike(self, one: Request, other: Request) -> None:
        assert figures(one) == figures(other)
        for got, expected in zip(self.notes[one], self.notes[other], strict=True):
            assert got[0] == expected[0]
            torch.testing.assert_close(got[1], expected[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("drafts", ["model", "eagle"])
def test_neighbours_change_nothing(drafts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour may even produce NaN everywhere, or NaN in all memory that must not be read."""
    witness = Witness(monkeypatch)
    target, draft = pair()
    draft = draft if drafts == "model" else eagle(target)

    def batch() -> Batch:
        head = Spy(Batch(target, draft).draft.lm_head, 60, num_groups=4, pinned=FREQUENT[:5])
        return Batch(target, draft, head=head, policy=Policy(MICROSPEC), **SHAPE)

    texts = [Text(9, 12), Text(21, 12), Text(4, 12), Text(14, 11, joins=2)]
    alone = [witness.run(batch(), [Text(text.length, text.count)])[0] for text in texts]
    together = batch()

    def break_the_second(there: dict[Request, Text]) -> None:
        texts = together._texts
        texts.set(len(there), 1 + max(request.read for request in there))
        for stored in texts.caches:
            poison(stored)
        broken = [request.row for request in there if request.group == 1]
        assert texts.draft_cache._entries is not None
        texts.draft_cache._entries[:, :, broken] = torch.nan
        texts.features[broken] = torch.nan

    requests = witness.run(together, texts, before=break_the_second)
    assert [request.group for request in requests] == [0, 1, 2, 3]
    for place in (0, 2, 3):
        witness.check_alike(requests[place], alone[place])
    assert requests[1].tokens == alone[1].tokens
    assert requests[1].stats.acceptance_lengths == [1] * 11


def test_texts_without_a_step_take_no_group() -> None:
    target, draft = pair(ends=truth("llama", 9, Sampling())[:1])
    batch = Batch(target, draft, num_groups=2, **SHAPE)
    ended = [
        batch.join(prompt(length, seed=length), count)
        for length, count in ((9, 14), (21, 1), (21, 0))
    ]
    assert [len(request.tokens) for request in ended] == [1, 1, 0]
    assert all(request.done for request in ended)
    assert batch.requests == batch.step() == []
    assert batch.free_groups == [0, 1]
    assert ended[0].stats.steps == 0


def test_the_seed_is_the_samplings_own_unless_given() -> None:
    target, draft = pair()
    sampling = Sampling(1.5, seed=5)
    batch = Batch(target, draft, sampling=sampling, **SHAPE)
    text = prompt(9, seed=9)
    requests = [batch.join(text, LONGEST, seed=seed) for seed in (None, 6)]
    while batch.requests:
        batch.step()
    expected = [truth("llama", 9, Sampling(1.5, seed=seed)) for seed in (5, 6)]
    assert [request.tokens for request in requests] == expected
    assert expected[0] != expected[1]
