# SPDX-License-Identifier: Apache-2.0
"""The list of frequent tokens, against a count in plain Python."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microspec_kernels.policy import count_frequent_tokens


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


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: count_frequent_tokens([], 9, [-1]), r"prior: expected ids in \[0, 9\), got -1"),
        (
            lambda: count_frequent_tokens([torch.tensor([9])], 9),
            r"texts: expected ids in \[0, 9\), got 9",
        ),
    ],
)
def test_what_is_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
