# SPDX-License-Identifier: Apache-2.0
"""Tables of relatives, each against a count or a comparison in plain Python."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microspec_kernels.policy import count_frequent_tokens, neighbours, successors, variants


def test_variants_toggle_case_and_space() -> None:
    texts = [
        "own",
        "Own",
        "OWN",
        " own",
        " Own",
        None,
        "7",
        " 7",
        "iOS",
        "IOS",
        " ",
        "",
        "own",
        "  own",
    ]
    table = variants(texts)
    assert table.dtype == torch.int32
    rows = [[t for t in row if t >= 0] for row in table.tolist()]
    assert rows == [
        [1, 2, 3, 4],
        [0, 2, 4, 3],
        [0, 1, 3, 4],
        [4, 0, 1, 2],
        [3, 1, 0, 2],
        [],
        [7],
        [6],
        [9],
        [],  # "ios" and "Ios" are no tokens, and nothing suggests that "iOS" was meant
        [],
        [10],
        [1, 2, 3, 4],  # a second token with the same text
        [3],
    ]
    assert table.shape == (14, 4) and all(
        row[len(kept) :] == [-1] * (4 - len(kept))
        for row, kept in zip(table.tolist(), rows, strict=True)
    )
    assert variants([]).shape == variants([]).shape == (0, 0)
    assert variants([None, "x"]).shape == (2, 0)


@given(
    texts=st.lists(st.lists(st.integers(0, 8), max_size=9), max_size=5),
    prior=st.lists(st.integers(0, 8), max_size=9, unique=True),
)
def test_rank_is_by_texts_then_by_the_prior(texts: list[list[int]], prior: list[int]) -> None:
    tokens = count_frequent_tokens([torch.tensor(t, dtype=torch.int64) for t in texts], 9, prior)
    stands_in = Counter(token for text in texts for token in set(text))
    elsewhere = {token: place for place, token in enumerate(prior)}
    expected = sorted(
        stands_in.keys() | elsewhere, key=lambda t: (-stands_in[t], elsewhere.get(t, 9), t)
    )
    assert tokens.tolist() == expected and tokens.dtype == torch.int64
    assert count_frequent_tokens(iter(()), 9).tolist() == []


@given(
    texts=st.lists(st.lists(st.integers(0, 8), max_size=30), max_size=4),
    count=st.integers(1, 10),
)
def test_successors_are_the_most_frequent(texts: list[list[int]], count: int) -> None:
    table = successors([torch.tensor(text, dtype=torch.int64) for text in texts], 9, count)
    pairs = Counter(pair for text in texts for pair in pairwise(text))
    for token in range(9):
        followers = [(-times, b) for (a, b), times in pairs.items() if a == token]
        expected = [b for _, b in sorted(followers)][:count]
        assert table[token].tolist() == expected + [-1] * (count - len(expected))
    assert table.dtype == torch.int32


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_neighbours_are_the_nearest(cosine: bool, chunk: int) -> None:
    weight = torch.randn(40, 6) * torch.rand(40, 1) * 3
    weight[7] = 0  # a row without a direction
    table = neighbours(weight, 5, cosine=cosine, chunk=chunk)
    assert table.shape == (40, 5) and table.dtype == torch.int32
    wide = weight.double()
    for token in range(40):
        scores = {}
        for other in set(range(40)) - {token}:
            score = wide[token] @ wide[other]
            if cosine:
                score /= wide[token].norm() * wide[other].norm()
            scores[other] = float(score)
        if token == 7:
            assert token not in table[token].tolist()
        else:
            scores[7] = 0.0
            nearest = sorted(scores, key=scores.__getitem__, reverse=True)
            assert table[token].tolist() == nearest[:5]
    whole = neighbours(weight.bfloat16(), 39, cosine=cosine).sort(1).values
    assert torch.equal(whole[3], torch.tensor([*range(3), *range(4, 40)], dtype=torch.int32))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: successors([], 9, 0), "successors: count: expected at least 1, got 0"),
        (lambda: successors([], 0, 1), "successors: vocab_size: expected at least 1, got 0"),
        (lambda: successors([torch.tensor([1, 9])], 9, 1), r"expected ids in \[0, 9\), got 9"),
        (lambda: count_frequent_tokens([], 9, [-1]), r"prior: expected ids in \[0, 9\), got -1"),
        (
            lambda: count_frequent_tokens([torch.tensor([9])], 9),
            r"texts: expected ids in \[0, 9\), got 9",
        ),
        (lambda: neighbours(torch.ones(3), 1), r"weight: expected shape \[V, D\], got \[3\]"),
        (lambda: neighbours(torch.ones(3, 2), 3), r"count: expected in \[1, 2\], got 3"),
        (lambda: neighbours(torch.ones(3, 2), 1, chunk=0), "chunk: expected at least 1, got 0"),
    ],
)
def test_what_is_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
