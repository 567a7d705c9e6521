# SPDX-License-Identifier: Apache-2.0
"""Policies: the tokens of each source and their order, without reads from the host."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels import ActiveVocab, policy
from microspec_kernels.policy import ContextSuccessors, Policy, Source, TargetPass

VOCAB = 97
NOTHING = torch.full((VOCAB, 2), -1, dtype=torch.int32)


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


def test_expanded_looks_up_what_the_other_takes() -> None:
    table = NOTHING.clone()
    table[11], table[12] = torch.tensor([40, 41]), torch.tensor([50, -1])
    table[0], table[VOCAB - 1] = 60, 60  # an empty place must not look these up
    relatives = policy.expanded(policy.generated(), table, "kin")
    assert relatives.tokens(seen()).tolist() == [[41, 40], [-1, 50], [-1, -1]]
    assert relatives.tokens(seen()).dtype == torch.int64
    fewer = policy.expanded(policy.generated(1), table, "kin")
    assert fewer.tokens(seen()).tolist() == [[-1, -1], [-1, 50], [-1, -1]]
    one = policy.expanded(policy.generated(), table, "kin", budget=2)
    assert one.tokens(seen()).tolist() == [[-1, 40], [-1, 50], [-1, -1]]
    wide = policy.expanded(policy.prompt_top_k(2, "last"), table, "kin")
    assert (wide.stage, wide.target_top_k, wide.prompt_rows) == ("prompt", 2, "last")
    assert wide.tokens(seen("prompt")).shape == (3, 4)
    remembers = ContextSuccessors(VOCAB).sources[0]
    assert policy.expanded(remembers, table, "kin").reset == remembers.reset is not None


def every_source(device: str) -> list[Source]:
    table = NOTHING.to(device)
    context = ContextSuccessors(VOCAB, order=2, ahead=3, device=device)
    plain = [*policy.MICROSPEC, *policy.TEXT, *context.sources, policy.prompt_top_k(2, "last")]
    kin = [policy.expanded(source, table, f"{source.name}_kin") for source in plain]
    return [Source(**(vars(s) | {"budget": b})) for s in (*plain, *kin) for b in (None, 2)]


@pytest.mark.parametrize("source", every_source("meta"), ids=lambda s: f"{s.name}-{s.budget}")
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_no_source_reads_a_value(source: Source, rows: int) -> None:
    """A meta tensor has no values: a source that reads one, or a shape from one, fails."""
    for best in {source.target_top_k, 0}:
        one = seen(source.stage, rows, best, device="meta")
        taken = Policy((source,)).select(one)
        assert taken.device.type == "meta" and taken.dtype == torch.int64
        assert len(taken) % max(1, rows) == 0


class PlainContext:
    """The last follower of every n-gram, in a dict."""

    def __init__(self, order: int) -> None:
        self.order, self.text, self.followers = order, [], {}

    def see(self, tokens: list[int], ahead: int) -> list[int]:
        for token in tokens:
            if len(self.text) >= self.order:
                self.followers[tuple(self.text[-self.order :])] = token
            self.text.append(token)
        found, ngram = [], tuple(self.text[-self.order :])
        for _ in range(ahead):
            token = self.followers.get(ngram, -1) if len(ngram) == self.order else -1
            found.append(token)
            ngram = (*ngram[1:], token)
        return found[::-1]


@given(order=st.integers(1, 3), ahead=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_context_is_the_last_follower(order: int, ahead: int, seed: int) -> None:
    """Take a prompt, then steps whose path is any part of the tree, then a second text."""
    rng = torch.Generator().manual_seed(seed)
    context = ContextSuccessors(2**20, order=order, ahead=ahead)  # no two n-grams share a slot
    on_prompt, on_step = context.sources
    for _ in range(2):
        plain = PlainContext(order)
        given_ = torch.randint(0, 3, (9,), generator=rng)
        chosen = torch.full((9,), -1)
        chosen[-1] = seed % 3
        one = TargetPass("prompt", given_, given_[:, None][:, :0], chosen)
        taken = on_prompt.tokens(one)
        for step in range(12):
            new = [*given_.tolist(), seed % 3] if step == 0 else chosen[chosen >= 0].tolist()
            assert taken[-1].tolist() == plain.see(new, ahead)
            assert taken[:-1].eq(-1).all()
            chosen = torch.randint(-2, 3, (5,), generator=rng).clamp(min=-1)
            taken = on_step.tokens(TargetPass("step", chosen, chosen[:, None][:, :0], chosen))
        Policy(context.sources).reset()


def in_vocab(texts: Policy, capacity: int, tokens: Tensor) -> set[int]:
    vocab = ActiveVocab(VOCAB, capacity)
    texts.reset()
    for piece in tokens.split(4):
        best = piece[:, None][:, :0]
        vocab.update(texts.select(TargetPass("step", piece, best, piece)))
    return set(vocab.ids[vocab.ids >= 0].tolist())


def test_context_matters_only_after_evictions() -> None:
    plain = Policy(policy.TEXT)
    context = Policy((*policy.TEXT, *ContextSuccessors(VOCAB).sources))
    tokens = torch.randint(0, 30, (200,))
    assert in_vocab(plain, 30, tokens) == in_vocab(context, 30, tokens)
    # 2 followed 1 and was then evicted by eight other tokens; then 1 comes again.
    forgotten = torch.tensor([1, 2, *range(10, 18), 1, 1])
    assert 2 not in in_vocab(plain, 8, forgotten[:-1])
    assert 2 in in_vocab(context, 8, forgotten[:-1])


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
        (
            lambda: policy.expanded(policy.prompt(), torch.zeros(4, dtype=torch.int32), "x"),
            ValueError,
            "expanded: table: expected shape [V, c], got [4]",
        ),
        (
            lambda: policy.expanded(policy.prompt(), torch.zeros(4, 1), "x"),
            TypeError,
            "expanded: table: expected int32 or int64, got torch.float32",
        ),
        (lambda: ContextSuccessors(9, order=0), ValueError, "order: expected at least 1, got 0"),
    ],
)
def test_what_is_refused(build: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        build()  # type: ignore[operator]
