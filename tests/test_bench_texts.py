# SPDX-License-Identifier: Apache-2.0
"""The figures of bench/decoding/pair.py and batches.py over made-up texts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.decoding import batches, pair
from bench.harness.tiny_pair import before_loop
from microspec_kernels.speculative import Generation, Stats


@pytest.mark.parametrize(
    ("tokens", "before"),
    [
        ([1, 2, 3, 4, 5, 6], 6),
        ([], 0),
        ([7, 7], 2),
        ([7, 7, 7], 0),
        ([1, 2, 7, 7, 7], 2),
        ([1, 2, 3, 4, 3, 4], 6),  # twice is no loop
        ([1, 2, 3, 4, 3, 4, 3, 4], 2),
        ([1, 2, 3, 4, 3, 4, 3, 4, 3], 2),
        ([5, 5, 5, 1, 2], 5),  # the loop ends before the text does
        ([9, *range(64), *range(64), *range(64)], 1),
        ([9, *range(65), *range(65), *range(65)], 196),  # longer than the search
    ],
)
def test_where_the_final_loop_begins(tokens: list[int], before: int) -> None:
    assert before_loop(tokens) == before


def generation(lengths: list[int], active: list[int], covered: int, **seconds: float) -> Generation:
    tokens = torch.arange(1 + sum(lengths))
    return Generation(tokens, lengths, Stats(lengths, active, [True] * covered, seconds))


def test_the_figures_of_two_texts() -> None:
    total = pair.Total()
    parts = {"head": 0.5, "draft_layer": 0.25, "vocabulary": 0.125, "tree": 0.125, "verify": 1.0}
    first = generation([2, 4], [10, 20], 5, total=2.0, **parts)
    second = generation([3], [40], 3, total=2.0, **parts)
    expected = list(range(7))
    total.add(first, expected, fresh=3)  # the first step ends with the third token
    total.add(second, [*expected[:3], 99], fresh=4)
    assert pair.row("sparse", total, depth=2) == {
        "head": "sparse", "tokens": 11, "tokens_per_s": 11 / 4, "tau": 3.0, "tau_before_loops": 2.5,
        "steps_before_loops": 2, "coverage": 8 / 9,
        "active_mean": pytest.approx(70 / 3), "active_max": 40,
        "head_ms_per_draft_step": pytest.approx(1e3 * 1.0 / 3 / 2),
        "draft_ms_per_draft_step": pytest.approx(1e3 * 2.0 / 3 / 2),
        "verify_ms_per_step": pytest.approx(1e3 * 2.0 / 3), "identical_outputs": 1,
    }  # fmt: skip


def test_the_target_alone_has_no_draft() -> None:
    total = pair.Total()
    total.add(generation([], [], 0, total=0.5), [0], fresh=1)
    found = pair.row("target alone", total, depth=6)
    assert (found["tokens_per_s"], found["tau"], found["coverage"]) == (2.0, 1.0, 1.0)
    assert {found[name] for name in found if name.startswith(("active", "head_", "verify"))} == {""}


class Batch:
    """Each request takes as many steps as its prompt says; a step fills one slot per request."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.seconds: dict[str, float] = {}
        ids = torch.full((2, 9), -1)
        vocab = SimpleNamespace(ids=ids)
        self.head = SimpleNamespace(vocab=vocab)
        self.count(vocab)

    def count(self, vocab: Any) -> None:
        vocab.size = (vocab.ids >= 0).sum(1)

    def join(self, prompt: int, new: int) -> Any:
        groups = {request.group for request in self.requests}
        request = SimpleNamespace(group=0 if 0 not in groups else 1, left=prompt)
        self.requests.append(request)
        return request

    def step(self) -> None:
        vocab = self.head.vocab
        for request in self.requests:
            ids = vocab.ids[request.group]
            ids[int((ids >= 0).sum())] = 5
            request.left -= 1
        self.count(vocab)
        busy = float(len(self.requests))
        for part, seconds in (("head", busy), ("vocabulary", 10 * busy)):
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self.requests = [request for request in self.requests if request.left]


def test_only_steps_of_a_full_batch_count() -> None:
    """Texts of 1, 3 and 1 steps, two at a time: the second text takes its last step alone."""
    done = batches.run(Batch(), [1, 3, 1], size=2, new=8)  # type: ignore[arg-type,list-item]
    assert [request.left for request in done.requests] == [0, 0, 0]
    assert done.rows == [0, 2] and done.gathered == [0, 2]
    assert done.head == [2.0, 2.0] and done.vocabulary == [20.0, 20.0]


def test_the_figures_of_a_batch() -> None:
    texts = [([2, 4], [10, 20], 5), ([3], [40], 3)]
    requests: list[Any] = [
        SimpleNamespace(stats=Stats(lengths, sizes, [True] * covered), tokens=[number])
        for number, (lengths, sizes, covered) in enumerate(texts)
    ]
    done = batches.Run(requests, [100, 200], [4, 8], [0.006, 0.012, 0.6], [0.001, 0.002, 0.2])
    assert batches.row(done, [[0], [7]], depth=6, row_bytes=1000) == {
        "coverage": 8 / 9, "tau": 3.0, "active_mean": pytest.approx(70 / 3), "active_max": 40,
        "rows_read_per_head_call": 150, "MB_read_per_head_call": pytest.approx(0.15),
        "rows_gathered_per_step": 6, "head_ms_per_draft_step": pytest.approx(2.0),
        "vocabulary_ms_per_step": pytest.approx(2.0), "full_steps": 2, "identical_outputs": 1,
    }  # fmt: skip
