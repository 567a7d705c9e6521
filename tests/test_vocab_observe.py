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

from microspec_kernels import reference, vocab_observe_

pytestmark = pytest.mark.backends(*COMPILED)


def verdicts_of(
    state: VocabState, tokens: Tensor, written: Tensor, token_groups: Tensor | None
) -> Tensor:
    """Judge token by token, from active_ids alone."""
    num_groups, vocab_size = state.token_slots.shape
    verdicts = torch.zeros(2, num_groups, dtype=torch.int64)
    groups = torch.arange(num_groups).repeat_interleave(tokens.size(-1))
    groups = groups if token_groups is None else token_groups
    flat = zip(tokens.flatten().tolist(), written.flatten().tolist(), groups.tolist(), strict=True)
    for token, counts, group in flat:
        if counts and 0 <= token < vocab_size and 0 <= group < num_groups:
            verdicts[0 if token in state.active_ids[group].tolist() else 1, group] += 1
    return verdicts


@pytest.mark.backends(*ALL)
@given(data=st.data())
def test_random_steps(data: st.DataObject) -> None:
    """Rows and ragged batches, shared vocabularies, verdicts or counts or both or neither."""
    draw = data.draw
    capacity, num_groups, vocab_size = draw(st.integers(0, 9)), draw(st.integers(1, 3)), 40
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    state = vocab_state(vocab_size, capacity, num_groups=num_groups)
    of_group = draw(st.booleans())  # a request is a group
    num_requests = num_groups if of_group else draw(st.integers(1, 4))
    num_lists = draw(st.integers(1, 3))
    counts = torch.zeros(num_lists, vocab_size, dtype=torch.int32)
    seen, total = torch.zeros(num_requests, 2, dtype=torch.int32), torch.zeros_like(counts[0])
    verdicts = torch.zeros(2, num_groups, dtype=torch.int64)
    judges, learns, sums = (draw(st.booleans()) for _ in range(3))
    for _ in range(draw(st.integers(1, 4))):
        n, ragged = draw(st.sampled_from((0, 1, 7, 30))), draw(st.booleans())
        flat = ragged or (num_groups == 1 and draw(st.booleans()))
        shape = (n,) if flat else (num_groups, n)
        tokens = torch.randint(-1, vocab_size, shape, generator=rng)
        if draw(st.booleans()):
            tokens = tokens.int()
        written = torch.rand(shape, generator=rng) < 0.4
        groups = torch.randint(-1, num_groups, (n,), generator=rng) if ragged else None
        requests = None
        if learns and not of_group:
            requests = torch.randint(-2, num_requests + 1, shape, generator=rng)
            requests = requests.int() if draw(st.booleans()) else requests
        lists = torch.randint(-1, num_lists, (num_requests,), generator=rng)
        options = {
            "token_groups": groups,
            "token_requests": requests,
            "request_lists": lists if learns else None,
        }
        written_to = {
            "verdicts": verdicts if judges else None,
            "text_counts": counts if learns else None,
            "seen": seen if learns else None,
            "total_counts": total if learns and sums else None,
        }
        want = {name: t if t is None else t.clone() for name, t in written_to.items()}
        expected, before = state.copy(), state.copy()
        if want["verdicts"] is not None:
            want["verdicts"] += verdicts_of(before, tokens, written, groups)
        if want["text_counts"] is not None:
            owners = groups if requests is None else requests.flatten()
            chosen = tokens.where(written, -1)
            chosen = chosen.flatten() if owners is not None else chosen.view(num_requests, n)
            of_count = {"token_requests": owners, "request_lists": lists}
            arguments = want["text_counts"], want["seen"], chosen
            reference.vocab_count_(*arguments, **of_count, total_counts=want["total_counts"])
        reference.vocab_update_(*expected.tensors(), tokens, token_groups=groups)
        vocab_observe_(*state.tensors(), tokens, written, **options, **written_to)
        for got, wanted in zip(state.tensors(), expected.tensors(), strict=True):
            assert_bitwise(got, wanted, "state")
        for name, tensor in written_to.items():
            if tensor is not None:
                assert_bitwise(tensor, want[name], name)


def test_a_step_of_many_requests_that_share_a_vocabulary() -> None:
    """Tokens are judged before they enter, and a text's repeats count once."""
    state = vocab_state(100, 8)
    seen, counts = torch.zeros(64, 4, dtype=torch.int32), torch.zeros(1, 100, dtype=torch.int32)
    verdicts = torch.zeros(2, 1, dtype=torch.int64)
    tokens = torch.tensor([[7, 8]] * 64).view(1, -1)
    written = torch.tensor([[True, False]] * 64).view(1, -1)
    requests = torch.arange(64).repeat_interleave(2).view(1, -1)
    for step in range(2):
        vocab_observe_(
            *state.tensors(),
            tokens,
            written,
            token_requests=requests,
            verdicts=verdicts,
            text_counts=counts,
            seen=seen,
        )
        assert verdicts.tolist() == [[64 * step], [64]]
    assert counts.nonzero().tolist() == [[0, 7]] and counts[0, 7] == 64


def test_a_long_step() -> None:
    """More tokens than a block of a GPU's grid, over many groups."""
    rng = torch.Generator().manual_seed(3)
    num_groups, vocab_size, count = 9, 3000, 20_000
    state = vocab_state(vocab_size, 200, num_groups=num_groups)
    counts = torch.zeros(2, vocab_size, dtype=torch.int32)
    seen = torch.zeros(num_groups, 94, dtype=torch.int32)
    verdicts = torch.zeros(2, num_groups, dtype=torch.int64)
    lists = torch.arange(num_groups) % 2
    for _ in range(2):
        tokens = torch.randint(-1, vocab_size, (count,), generator=rng) % 400
        groups = torch.randint(-1, num_groups, (count,), generator=rng)
        written = torch.rand(count, generator=rng) < 0.5
        want = verdicts + verdicts_of(state, tokens, written, groups)
        learned = counts.clone(), seen.clone()
        chosen = tokens.where(written, -1)
        owners = {"token_requests": groups, "request_lists": lists}
        reference.vocab_count_(*learned, chosen, **owners)
        vocab_observe_(
            *state.tensors(), tokens, written, token_groups=groups, verdicts=verdicts,
            text_counts=counts, seen=seen, request_lists=lists,
        )  # fmt: skip
        assert_bitwise(verdicts, want, "verdicts")
        assert_bitwise(counts, learned[0], "text_counts")
        assert_bitwise(seen, learned[1], "seen")
