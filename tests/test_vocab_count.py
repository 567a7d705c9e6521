# SPDX-License-Identifier: Apache-2.0
"""vocab_count_ against sets of tokens and, bit for bit, against the reference."""

import pytest
import torch
from backends_under_test import ALL, COMPILED
from compare import assert_bitwise
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels import reference, vocab_count_

pytestmark = pytest.mark.backends(*COMPILED)


class Texts:
    """Counts kept as sets, one for each request's text."""

    def __init__(self, num_lists: int, vocab_size: int, num_requests: int) -> None:
        self.counts = torch.zeros(num_lists, vocab_size, dtype=torch.int32)
        self.seen: list[set[int]] = [set() for _ in range(num_requests)]

    def see(self, token: int, request: int, lists: list[int]) -> None:
        num_lists, vocab_size = self.counts.shape
        if not (0 <= token < vocab_size and 0 <= request < len(self.seen)):
            return
        if 0 <= lists[request] < num_lists and token not in self.seen[request]:
            self.seen[request].add(token)
            self.counts[lists[request], token] += 1

    def bits(self) -> Tensor:
        words = (self.counts.size(1) + 31) // 32
        seen = [
            [sum(1 << t % 32 for t in s if t // 32 == w) for w in range(words)] for s in self.seen
        ]
        return torch.tensor(seen).int() if words else torch.empty(len(seen), 0, dtype=torch.int32)


def either(draw: st.DrawFn, values: Tensor) -> Tensor:
    return values.int() if draw(st.booleans()) else values


@pytest.mark.backends(*ALL)
@given(data=st.data())
def test_random_texts(data: st.DataObject) -> None:
    """Repeats, padding, ids and requests and lists that do not exist; texts that begin anew."""
    draw = data.draw
    num_lists, num_requests = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    vocab_size = draw(st.sampled_from((1, 31, 32, 33, 90)))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    texts = Texts(num_lists, vocab_size, num_requests)
    total = torch.zeros(vocab_size, dtype=torch.int32) if draw(st.booleans()) else None
    counts, seen = torch.zeros_like(texts.counts), torch.zeros_like(texts.bits())
    for _ in range(draw(st.integers(1, 5))):
        n = draw(st.sampled_from((0, 1, 5, 40)))
        ragged = draw(st.booleans())
        shape = (n,) if ragged else (num_requests, n)
        tokens = either(draw, torch.randint(-2, vocab_size + 2, shape, generator=rng))
        requests = torch.arange(num_requests).repeat_interleave(n)
        if ragged:
            requests = either(draw, torch.randint(-2, num_requests + 2, (n,), generator=rng))
        lists = either(draw, torch.randint(-2, num_lists + 2, (num_requests,), generator=rng))
        if num_lists == 1 and draw(st.booleans()):
            lists = None
        options = {
            "token_requests": requests if ragged else None,
            "request_lists": lists,
        }
        want = [t if t is None else t.clone() for t in (counts, seen, total)]
        vocab_count_(counts, seen, tokens, **options, total_counts=total)
        reference.vocab_count_(*want[:2], tokens, **options, total_counts=want[2])
        of_request = [0] * num_requests if lists is None else lists.tolist()
        for token, request in zip(tokens.flatten().tolist(), requests.tolist(), strict=True):
            texts.see(token, request, of_request)
        assert_bitwise(counts, texts.counts, "text_counts")
        assert_bitwise(seen, texts.bits(), "seen")
        assert_bitwise(counts, want[0], "text_counts")
        assert_bitwise(seen, want[1], "seen")
        if total is not None:
            assert_bitwise(total, texts.counts.sum(0).int(), "total_counts")
        begins = draw(st.integers(0, num_requests - 1))
        texts.seen[begins].clear()
        seen[begins] = 0


def test_a_text_counts_once_however_many_calls_show_its_token() -> None:
    counts, seen = torch.zeros(2, 64, dtype=torch.int32), torch.zeros(3, 2, dtype=torch.int32)
    lists = torch.tensor([1, 0, 1])
    for _ in range(3):
        vocab_count_(
            counts,
            seen,
            torch.tensor([7, 7, 63, 7, 31]),
            token_requests=torch.tensor([0, 0, 1, 2, 2]),
            request_lists=lists,
        )
    assert counts.nonzero().tolist() == [[0, 63], [1, 7], [1, 31]]
    assert counts[1, 7] == 2 and counts[0, 63] == 1
    assert seen.tolist() == [[1 << 7, 0], [0, -(2**31)], [(1 << 7) - 2**31, 0]]


def test_a_long_batch_of_many_requests() -> None:
    """Every thread of a GPU's grid meets others at the same words and counters."""
    rng = torch.Generator().manual_seed(5)
    num_requests, vocab_size, count = 37, 3000, 20_000
    tokens = torch.randint(0, vocab_size, (count,), generator=rng).clamp(max=700)
    requests = torch.randint(-1, num_requests, (count,), generator=rng)
    lists = torch.arange(num_requests) % 3
    texts = Texts(3, vocab_size, num_requests)
    for token, request in zip(tokens.tolist(), requests.tolist(), strict=True):
        texts.see(token, request, lists.tolist())
    for _ in range(2):
        counts, seen = torch.zeros_like(texts.counts), torch.zeros_like(texts.bits())
        vocab_count_(counts, seen, tokens, token_requests=requests, request_lists=lists)
        assert_bitwise(counts, texts.counts, "text_counts")
        assert_bitwise(seen, texts.bits(), "seen")


def test_nothing_beside_the_tables_is_written() -> None:
    outer = torch.full((4, 70), 77, dtype=torch.int32), torch.full((4, 3), 77, dtype=torch.int32)
    counts, seen = (wide[1:3].zero_() for wide in outer)
    tokens = torch.tensor([-1, 69, 70, 95, 96, 2**40, -(2**40), 0])
    vocab_count_(
        counts, seen, tokens.expand(2, -1).contiguous(), request_lists=torch.tensor([0, 1])
    )
    assert all(bool((wide[0] == 77).all() and (wide[-1] == 77).all()) for wide in outer)
    assert counts.nonzero().tolist() == [[0, 0], [0, 69], [1, 0], [1, 69]]
