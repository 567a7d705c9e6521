# SPDX-License-Identifier: Apache-2.0
"""vocab_observe_ is three calls in one: verdicts, vocab_count_ and vocab_update_."""

import pytest
import torch
from backends_under_test import ALL, COMPILED
from compare import assert_bitwise
from generators import VocabState, vocab_state
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels import Tally, reference, vocab_observe_

pytestmark = pytest.mark.backends(*COMPILED)
VOCAB = 40


def tally_of(num_lists: int, num_requests: int, vocab_size: int = VOCAB) -> Tally:
    tally = Tally(vocab_size, num_lists=num_lists, num_requests=num_requests)
    tally.request_lists.copy_(torch.arange(num_requests)[: tally.request_lists.numel()] % 3)
    tally.request_lists[tally.request_lists >= num_lists] = -1
    return tally


def expected(
    state: VocabState,
    tally: Tally | None,
    candidates: list[int],
    written: list[int],
    groups: Tensor | None,
    requests: Tensor | None,
) -> None:
    """Do the step token by token. The tokens are ids of the vocabulary already, or -1."""
    num_groups = len(state.token_slots)
    ids = candidates + written
    of_group = [0] * len(ids) if groups is None else groups.tolist()
    if tally is not None:
        num_requests = tally.verdicts.size(1)
        of_request = of_group if num_requests == num_groups else [0] * len(ids)
        of_request = of_request if requests is None else requests.tolist()
        owned = list(zip(ids, of_group, of_request, strict=True))[len(candidates) :]
        for token, group, request in owned:
            if token < 0 or not 0 <= request < num_requests:
                continue
            if 0 <= group < num_groups:
                active = token in state.active_ids[group].tolist()
                tally.verdicts[0 if active else 1, request] += 1
            if tally.num_lists:
                reference.vocab_count_(
                    tally.text_counts, tally.seen, torch.tensor([token]),
                    token_requests=torch.tensor([request]), request_lists=tally.request_lists,
                    total_counts=tally.total_counts,
                )  # fmt: skip
    tokens = torch.tensor(ids, dtype=torch.int64)
    reference.vocab_update_(*state.tensors(), tokens, token_groups=groups)


@pytest.mark.backends(*ALL)
@given(data=st.data())
def test_random_steps(data: st.DataObject) -> None:
    """Rows with lengths, candidates, a map of tokens, several groups and requests: all mixed."""
    draw = data.draw
    capacity, num_groups = draw(st.integers(0, 9)), draw(st.integers(1, 3))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    state = vocab_state(VOCAB, capacity, num_groups=num_groups)
    num_requests = draw(st.integers(1, 4))
    tally = None
    if draw(st.booleans()):
        tally = tally_of(draw(st.integers(0, 3)), num_requests)
    rows, tokens_in = None, VOCAB
    if draw(st.booleans()):
        tokens_in = 70
        rows = torch.randint(-3, VOCAB + 3, (tokens_in,), generator=rng, dtype=torch.int32)

    def some(low: int, high: int, *shape: int) -> Tensor:
        drawn = torch.randint(low, high, shape, generator=rng)
        return drawn.int() if draw(st.booleans()) else drawn

    def in_vocab(token: int) -> int:
        token = token if rows is None or token < 0 else int(rows[token])
        return token if 0 <= token < VOCAB else -1

    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.sampled_from([(0,), (1,), (30,), (1, 0), (0, 4), (1, 7), (4, 3), (9, 1)]))
        tokens, candidates, lengths = some(-1, tokens_in, *shape), None, None
        valid = tokens.long()
        if len(shape) == 2 and draw(st.booleans()):
            lengths = some(-1, shape[1] + 2, shape[0])
            inside = torch.arange(shape[1]) < lengths[:, None]
            valid = valid.where(inside, -1)
            tokens = tokens.where(inside, some(-(2**31), 2**31 - 1, *shape).to(tokens.dtype))
        if draw(st.booleans()):
            candidates = some(-1, tokens_in, *draw(st.sampled_from([(0,), (5,), (3, 4)])))
        count = tokens.numel() + (0 if candidates is None else candidates.numel())
        groups = requests = None
        if num_groups > 1 or draw(st.booleans()):
            groups = some(-1, num_groups, count)
        if tally is not None and (num_requests not in (1, num_groups) or draw(st.booleans())):
            requests = some(-2, num_requests + 2, count)
        read = [t for t in (tokens, lengths, candidates, rows, groups, requests) if t is not None]
        before = [t.clone() for t in read]
        want, of_want = state.copy(), None
        if tally is not None:
            of_want = Tally.over(tally.data.clone(), VOCAB, tally.num_lists)
        older = [] if candidates is None else candidates.flatten().tolist()
        ids = [[in_vocab(t) for t in ts] for ts in (older, valid.flatten().tolist())]
        expected(want, of_want, *ids, groups, requests)
        vocab_observe_(
            *state.tensors(), tokens, lengths=lengths, candidates=candidates, token_rows=rows,
            token_groups=groups, token_requests=requests,
            tally=None if tally is None else tally.data,
            num_lists=0 if tally is None else tally.num_lists,
        )  # fmt: skip
        for got, wanted in zip(state.tensors(), want.tensors(), strict=True):
            assert_bitwise(got, wanted, "state")
        if tally is not None and of_want is not None:
            assert_bitwise(tally.data, of_want.data, "tally")
        for got, wanted in zip(read, before, strict=True):
            assert_bitwise(got, wanted, "what the op reads")


def test_a_step_of_many_requests_that_share_a_vocabulary() -> None:
    """Tokens are judged before they enter, and a text's repeats count once."""
    state, tally = vocab_state(100, 8), tally_of(1, 64, 100)
    tally.request_lists.zero_()
    requests = torch.tensor([-1] * 64 + list(range(64)))
    tokens, candidates = torch.full((64, 1), 7), torch.full((64,), 8)
    for step in range(2):
        vocab_observe_(
            *state.tensors(),
            tokens,
            candidates=candidates,
            token_requests=requests,
            tally=tally.data,
            num_lists=1,
        )
        assert tally.verdicts.tolist() == [[step] * 64, [1] * 64]
    assert tally.text_counts.nonzero().tolist() == [[0, 7]] and tally.text_counts[0, 7] == 64


@pytest.mark.parametrize("plain", [False, True])
def test_a_long_step(plain: bool) -> None:
    """More tokens than a block of a GPU's grid, over many groups; ids as they lie, or mapped."""
    rng = torch.Generator().manual_seed(3)
    num_groups, vocab_size, count = 9, 3000, 20_000
    state = vocab_state(vocab_size, 200, num_groups=num_groups)
    tally = tally_of(2, num_groups, vocab_size)
    rows = None if plain else torch.arange(vocab_size, dtype=torch.int32).flip(0).contiguous()
    for _ in range(2):
        tokens = torch.randint(-1, vocab_size, (count,), generator=rng) % 400
        groups = torch.randint(-1, num_groups, (count,), generator=rng)
        want = Tally.over(tally.data.clone(), vocab_size, 2)
        options = {"token_rows": rows, "token_groups": groups, "num_lists": 2}
        judge_and_count = reference.observing(reference.vocab_count_, lambda *_, **__: None)
        judge_and_count(*state.tensors(), tokens, tally=want.data, **options)
        ids = tokens if rows is None else rows[tokens].long()
        after = state.copy()
        reference.vocab_update_(*after.tensors(), ids, token_groups=groups)
        vocab_observe_(*state.tensors(), tokens, tally=tally.data, **options)
        assert_bitwise(tally.data, want.data, "tally")
        for got, wanted in zip(state.tensors(), after.tensors(), strict=True):
            assert_bitwise(got, wanted, "state")


@pytest.mark.parametrize("num_lists", [0, 1, 3])
def test_a_tally_grows(num_lists: int) -> None:
    """Counts of the running texts stay, and new ones begin without a list."""
    tally = tally_of(num_lists, 2)
    for number, part in enumerate((tally.verdicts, tally.seen, tally.text_counts)):
        part.copy_(torch.arange(part.numel()).view(part.shape) + number)
    if tally.total_counts is not None:
        tally.total_counts.copy_(torch.arange(VOCAB))
    more = tally.with_room(5)
    assert more.verdicts.shape == (2, 5) and not more.verdicts[:, 2:].any()
    assert torch.equal(more.verdicts[:, :2], tally.verdicts)
    assert torch.equal(more.text_counts, tally.text_counts)
    assert (more.total_counts is None) == (num_lists < 2)
    if tally.total_counts is not None and more.total_counts is not None:
        assert torch.equal(more.total_counts, tally.total_counts)
    if num_lists:
        assert more.request_lists.tolist() == [*tally.request_lists.tolist(), -1, -1, -1]
        assert torch.equal(more.seen[:2], tally.seen) and not more.seen[2:].any()
    parts = [more.verdicts, more.request_lists, more.seen, more.text_counts, more.total_counts]
    words = [p.numel() * p.element_size() // 4 for p in parts if p is not None]
    assert sum(words) == more.data.numel(), "every word belongs to one part"


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vocab_size", {"vocab_size": 0}),
        ("num_lists", {"vocab_size": 5, "num_lists": -1}),
        ("num_requests", {"vocab_size": 5, "num_requests": 0}),
    ],
)
def test_a_tally_of_no_size(name: str, sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"^Tally: {name}: expected at least"):
        Tally(**sizes)
