# SPDX-License-Identifier: Apache-2.0
"""Numbers of requests, and the requests of a step's tokens."""

import torch

from microspec_kernels.integrations.hooks import RequestNumbers, TokenRequests

from .launches import launched


def test_numbers_are_given_once_and_again_after_the_end() -> None:
    numbers = RequestNumbers(2)
    assert [numbers.begin(name) for name in "aba"] == [0, 1, 0]
    assert numbers.of("bxa") == [1, -1, 0]
    numbers.end("a")
    numbers.end("unknown")
    assert [numbers.begin(name) for name in "cb"] == [0, 1]


def test_more_requests_than_numbers_take_those_asked_for_the_longest_ago() -> None:
    numbers = RequestNumbers(2)
    numbers.begin("a")
    numbers.begin("b")
    assert numbers.of("a") == [0]
    assert numbers.begin("c") == 1 and numbers.of("abc") == [0, -1, 1]


def test_requests_of_tokens_are_copied_when_they_change() -> None:
    requests = TokenRequests(torch.device("cpu"))
    first = requests.of(([2, 0], 3))
    assert first.tolist() == [2, 2, 2, 0, 0, 0] and first.dtype == torch.int64
    assert launched(lambda: requests.of(([2, 0], 3))) == []
    assert requests.of(([2, 0], 3)) is first
    assert requests.of(([-1], 4), ([0, 2], 1)).tolist() == [-1, -1, -1, -1, 0, 2]
    assert first.tolist() == [2, 2, 2, 0, 0, 0], "a kernel may still read it"
