# SPDX-License-Identifier: Apache-2.0
"""EngineHead learns which tokens its texts show, in rows of the draft's head."""

from pathlib import Path
from typing import Any

import pytest
import torch

from microspec_kernels.engine import EngineHead, Settings
from microspec_kernels.policy import StepCosts, prior_of_tokenizer

from .engine_reference import DIM, ROW_TOKENS, ROWS, V, frequent_tokens_file, weight_of

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

NONE = torch.empty(0, dtype=torch.int64)
each_map = pytest.mark.parametrize("mapped", [False, True], ids=["all rows", "mapped"])


def head_of(mapped: bool = False, weight: Any = None, **options: Any) -> EngineHead:
    names = {"capacity", "num_lists", "learned_file", "frequent_tokens_file", "mode", "learn"}
    settings = {name: options.pop(name) for name in names & set(options)}
    weight = weight_of(torch.float32, rows=ROWS if mapped else V) if weight is None else weight
    row_tokens = ROW_TOKENS if mapped else None
    return EngineHead(
        weight,
        Settings(**({"capacity": 8, "target_top_k": 0} | settings)),
        target_vocab_size=V,
        row_tokens=row_tokens,
        **options,
    )


def active(head: EngineHead, group: int = 0) -> set[int]:
    return set(head.slot_tokens()[group].tolist()) - {-1}


def with_rows(mapped: bool) -> list[int]:
    """Return the tokens that the draft has a row for, by id."""
    return sorted(ROW_TOKENS.tolist()) if mapped else list(range(V))


def write(head: EngineHead, request: int, *tokens: int) -> None:
    written = torch.tensor(tokens)
    head.observe(written, None if head.num_requests == 1 else torch.full_like(written, request))


@each_map
def test_the_prior_is_the_order_of_the_targets_tokens(mapped: bool) -> None:
    assert active(head_of(mapped)) == set(with_rows(mapped)[:8])
    prior = torch.arange(V).flip(0)[:20]
    want = [token for token in prior.tolist() if token in with_rows(mapped)]
    rest = [token for token in with_rows(mapped) if token not in want]
    for head in (head_of(mapped, prior=prior), head_of(mapped, prior=prior, num_groups=2)):
        assert active(head) == set([*want, *rest][:8])


def vocabulary() -> Any:
    """Return a tokenizer whose odd tokens are words, and so lead."""
    texts = {("Ġword" if token % 2 else "part") + str(token): token for token in range(V)}
    return tokenizers.Tokenizer(tokenizers.models.BPE(texts, []))


@each_map
def test_a_file_leads_before_a_prior_and_a_prior_before_a_tokenizer(
    mapped: bool, tmp_path: Path
) -> None:
    first = [token for token in prior_of_tokenizer(vocabulary()).tolist()]
    want = [token for token in first if token in with_rows(mapped)][:8]
    assert want != with_rows(mapped)[:8]
    assert active(head_of(mapped, tokenizer=vocabulary())) == set(want)
    prior = torch.tensor(with_rows(mapped)).flip(0)
    head = head_of(mapped, tokenizer=vocabulary(), prior=prior)
    assert active(head) == set(with_rows(mapped)[-8:])
    listed = with_rows(mapped)[10:18]
    path = frequent_tokens_file(tmp_path, listed)
    head = head_of(mapped, tokenizer=vocabulary(), prior=prior, frequent_tokens_file=path)
    assert active(head) == set(listed)


@each_map
def test_a_request_begins_with_the_tokens_of_the_most_texts(mapped: bool) -> None:
    tokens = with_rows(mapped)[20:]
    head = head_of(mapped, num_groups=2)
    for text in range(3):
        head.begin([text % 2], [NONE])
        write(head, text % 2, *tokens[: 4 - text], *tokens[: 4 - text])
    head.begin([1], [torch.tensor([tokens[9], -1, V + 5])])
    # Each token counts once a text; the prior's first tokens follow, and its last gives way.
    assert active(head, 1) == {*tokens[:4], tokens[9], *with_rows(mapped)[:3]}
    assert head.learning is not None
    counts = head.learning.lists.text_counts.sum(0)
    rows = head.token_map.to_rows(torch.tensor(tokens[:5]))
    assert counts[rows].tolist() == [3, 3, 2, 1, 0]


@each_map
@pytest.mark.parametrize("mode", ["indexed", "packed"])
def test_the_floor_of_a_shared_vocabulary_is_brought_up_to_date(mapped: bool, mode: str) -> None:
    tokens = with_rows(mapped)
    head = head_of(mapped, num_requests=3, mode=mode)
    for text in range(7):
        head.begin([text % 3], [NONE])
        write(head, text % 3, *tokens[30:33])
    head.begin([0], [torch.tensor(tokens[25:29])])  # the eighth: 6 of 8 slots are pinned anew
    write(head, 0, *tokens[20:25])
    assert {*tokens[30:33], *tokens[:3]} <= active(head)
    hidden = torch.randn(5, DIM)
    dense = hidden @ weight_of(torch.float32, rows=ROWS if mapped else V).T
    rows = head.token_map.to_rows(torch.tensor(sorted(active(head))))
    want = torch.tensor(sorted(active(head)))[dense[:, rows].argmax(1)]
    assert torch.equal(head.argmax(hidden), want)


def test_a_long_prompt_does_not_flush_a_shared_vocabulary() -> None:
    head = head_of(num_requests=2, capacity=24)
    head.begin([0, 1], [torch.arange(V), torch.arange(V)])
    assert {V - 1, V - 2, V - 3, V - 4} <= active(head) and V - 5 not in active(head)


def test_a_request_without_a_number_is_served_but_not_counted() -> None:
    head = head_of(num_requests=2)
    write(head, -1, 51)
    assert 51 in active(head)
    assert head.learning is not None and not head.learning.lists.text_counts.any()
    for request in (2, -1):
        with pytest.raises(IndexError, match=f"requests: expected 0 to 1, got {request}"):
            head.begin([request], [NONE])


def test_broken_rows_never_enter() -> None:
    weight = weight_of(torch.float32)
    weight[[2, 5]] = torch.nan
    for options in ({"num_requests": 2}, {"num_groups": 2}):
        head = head_of(weight=weight.clone(), capacity=V, **options)
        assert head.capacity == V - 2
        assert active(head) == set(range(V)) - {2, 5}
        write(head, 0, 2, 5)
        assert head.argmax(torch.zeros(1, DIM), torch.tensor([0])[: head.vocab.num_groups]) == 0
        assert not {2, 5} & active(head)


def test_what_was_learned_lasts(tmp_path: Path) -> None:
    path = str(tmp_path / "learned.safetensors")

    def learned(**options: Any) -> EngineHead:
        settings = {
            "learned_file": path,
            "tokenizer": vocabulary(),
            "num_groups": 2,
            "mapped": True,
        }
        return head_of(**(settings | options))

    head = learned()
    tokens = with_rows(True)[-8:]
    head.begin([0], [NONE])
    write(head, 0, *tokens)
    assert head.learning is not None and head.learning._file is not None
    head.learning._file.save()
    again = learned(writes=False)
    assert active(again) == active(again, 1) == set(tokens)
    assert again.learning is not None and again.learning._file is not None
    assert not again.learning._file.writes
    again.begin([0], [NONE])
    write(again, 0, *with_rows(True)[:8])
    again.reset()
    assert active(again) == set(tokens), "the start's state, not an empty one"
    moved = tmp_path / "learned.safetensors"
    before = moved.read_bytes()
    del again
    assert moved.read_bytes() == before
    for options, message in (
        ({"tokenizer": None}, "expected tokenizer"),
        ({"num_lists": 3}, "expected num_lists 3, got 8"),
        ({"mapped": False}, "expected vocab_size 60, got 41"),
    ):
        with pytest.raises(ValueError, match=rf"learned\.safetensors: {message}"):
            learned(**options)
    with pytest.raises(ValueError, match="expected tokenizer"):  # other tokens in the same rows
        EngineHead(
            weight_of(torch.float32, rows=ROWS),
            Settings(learned_file=path),
            num_groups=2,
            tokenizer=vocabulary(),
            target_vocab_size=V,
            row_tokens=ROW_TOKENS.flip(0),
        )


def test_off_learns_nothing() -> None:
    head = head_of(learn=False, num_requests=2, prior=torch.arange(20), tokenizer=vocabulary())
    assert head.learning is None and active(head) == set()
    head.begin([0], [torch.arange(40, 60)])
    assert active(head) == set(range(52, 60)), "the whole prompt enters"


def test_each_rank_of_requests_needs_its_vocabulary() -> None:
    with pytest.raises(ValueError, match="num_requests: expected num_groups = 2, got 3"):
        head_of(num_groups=2, num_requests=3)
    with pytest.raises(ValueError, match="token_requests: expected one per token"):
        head_of(num_requests=2).observe(torch.tensor([1]))


def test_a_capacity_that_the_traffic_chooses() -> None:
    """Narrow texts of a few tokens: K falls to the smallest, under the same tensors."""
    rows = 40_000
    weight = torch.randn(rows, 4)
    costs = StepCosts(1e9, 1e8, 8192, rows)
    head = EngineHead(weight, Settings(target_top_k=0), num_requests=2, costs=costs)
    auto = head.learning.vocab.auto if head.learning is not None else None
    assert auto is not None
    first, ids = auto.limit, head.vocab.ids.data_ptr()
    assert 1024 < first < head.capacity <= rows
    assert f"K = {first} of up to {head.capacity}" in str(head)
    for turn in range(20):
        head.begin([turn % 2], [torch.arange(20)])
        tokens = torch.arange(64).repeat(2, 1)
        head.observe(tokens, torch.arange(2).repeat_interleave(64))
    assert auto.costs.num_requests == 2
    assert auto.limit == 1024 and head.vocab.limit.tolist() == [1024]
    assert head.vocab.ids.data_ptr() == ids and len(active(head)) <= 1024
    stats = head.stats()
    assert stats is not None and stats.misses == 0
    tokens = torch.tensor(sorted(active(head)))
    best = (weight[:3] @ weight[tokens].T).argmax(1)
    assert torch.equal(head.argmax(weight[:3]), tokens[best])
    head.reset()  # the engine's warm-up is over: nothing of it is measured
    assert auto._begun == 0
    for turn in range(8):
        assert auto.limit == 1024
        head.begin([turn % 2], [torch.arange(20)])
        tokens = torch.randint(rows, (2, 64))  # most of them are not active
        head.observe(tokens, torch.arange(2).repeat_interleave(64))
    stats = head.stats()
    assert stats is not None and stats.misses > 5 * stats.hits
    head.begin([0], [torch.arange(20)])
    for turn in range(1, 8):
        head.begin([turn % 2], [torch.arange(20)])
    assert auto.limit > 1024
    with_k = EngineHead(weight, Settings(capacity=500), num_requests=2, costs=costs)
    assert with_k.learning is not None and with_k.learning.vocab.auto is None
