# SPDX-License-Identifier: Apache-2.0
"""capacity="auto": the K that a step's bytes are worth, and the misses of every K as texts run."""

import logging
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from microspec_kernels import ActiveVocab
from microspec_kernels.policy import FLOOR_SHARE, LearnedLists, LearnedVocab
from microspec_kernels.policy.capacity import (
    ACCEPTANCE,
    COSTLY_MISSES,
    SIZES,
    StepCosts,
    choose_capacity,
    expected_misses,
    explain,
    judge_capacity,
)
from microspec_kernels.policy.coverage_curve import CoverageCurve, misses_of_sizes

# Llama-3.1-8B in bf16 with an EAGLE draft, in bytes.
LLAMA = StepCosts(
    target_bytes=15e9, layer_bytes=0.5e9, row_bytes=8192, num_rows=128256, num_drafts=5
)


def speed(costs: StepCosts, capacity: int, misses: float) -> float:
    """Tokens of a pass for each byte, for one request or a few."""
    p = ACCEPTANCE * (1 - COSTLY_MISSES * misses)
    tokens = (1 - p ** (costs.num_drafts + 1)) / (1 - p)
    rows = capacity * costs.row_bytes
    return tokens / (costs.target_bytes + costs.num_drafts * (costs.layer_bytes + rows))


def test_the_fastest_of_all_sizes() -> None:
    rng = random.Random(3)
    for _ in range(40):
        costs = StepCosts(
            target_bytes=10 ** rng.uniform(8, 11),
            layer_bytes=10 ** rng.uniform(7, 10),
            row_bytes=rng.choice((1000, 4096, 16384)),
            num_rows=rng.choice((2000, 32000, 262144)),
            num_drafts=rng.randint(1, 7),
        )
        misses = {size: rng.random() for size in SIZES}
        sizes = [size for size in SIZES if size < costs.num_rows]
        dense = speed(costs, costs.num_rows, 0)
        gains = {size: speed(costs, size, misses[size]) / dense for size in sizes}
        best = max(gains, key=gains.__getitem__)
        choice = choose_capacity(costs, misses.__getitem__)
        if gains[best] > 1:
            assert choice.capacity == best
            assert choice.speedup == pytest.approx(gains[best])
            assert choice.coverage == pytest.approx(1 - misses[best])
        else:
            assert choice == (costs.num_rows, 1.0, 1.0)


def test_what_the_choice_follows() -> None:
    """The dearer a row, the fewer of them; 32k rows have nothing to win, nor has a large batch."""
    capacities = [
        choose_capacity(StepCosts(15e9, 0.5e9, row_bytes, 128256)).capacity
        for row_bytes in (2048, 8192, 65536)
    ]
    assert capacities == sorted(capacities, reverse=True) and len(set(capacities)) == 3
    assert choose_capacity(StepCosts(15e9, 0.5e9, 8192, 32000)) == (32000, 1.0, 1.0)
    assert choose_capacity(StepCosts(15e9, 0.5e9, 8192, 128256, num_requests=256)).speedup == 1.0
    one, own = (
        choose_capacity(StepCosts(15e9, 0.5e9, 8192, 128256, num_requests=8, shared=shared))
        for shared in (True, False)
    )
    assert own.capacity < one.capacity  # eight vocabularies read eight times the rows
    assert choose_capacity(LLAMA, largest=5000).capacity == 5000
    assert choose_capacity(LLAMA, lambda size: 0.0).capacity == SIZES[0]


def test_operations_cost_in_large_batches() -> None:
    """Twice the tokens of what a byte's time computes take twice the time."""
    costs = StepCosts(1e9, 0.0, 1000, 10**6, num_drafts=4, num_requests=80)  # 400 tokens a pass
    assert costs.bytes(0) == 2e9
    assert costs.bytes(1000) == 2e9 + 4 * 1e6
    apart = StepCosts(1e9, 0.0, 1000, 10**6, num_drafts=4, num_requests=80, shared=False)
    assert apart.bytes(1000) == 2e9 + 80 * 4 * 1e6
    assert apart.bytes(10**6) == costs.bytes(10**6)  # the dense head has one set of rows
    packed = replace(costs, slab_row_bytes=500)
    assert packed.bytes(1000) == 2e9 + 4 * 5e5
    assert packed.bytes(10**6) == costs.bytes(10**6)


def test_the_expected_misses_are_those_of_the_traces() -> None:
    """The broader stream's learned list, and its shared floors, within a tenth."""
    for capacity, requests, missed in (
        (3072, 1, 0.153), (8192, 1, 0.097), (16384, 1, 0.062),
        (3072, 8, 0.189), (3072, 32, 0.239), (16384, 32, 0.069),
    ):  # fmt: skip
        assert expected_misses(capacity, requests) == pytest.approx(missed, rel=0.11)


def test_a_sentence_says_why() -> None:
    said = explain(LLAMA, choose_capacity(LLAMA))
    assert said.startswith("K = 16384 of 128256 rows: a step of 5 drafts and 1 request reads 18.17")
    assert "instead of 22.75, coverage 0.934 expected of broad traffic, 1.18 times" in said
    small = StepCosts(15e9, 0.5e9, 8192, 32000)
    said = explain(small, choose_capacity(small))
    assert said.startswith("all 32000 rows: no smaller K would gain, as a step of 5 drafts")
    assert "reads 18.81 GB, and 1.31 GB of them are the LM head's" in said


V = 60


def words(draw: random.Random, count: int) -> list[int]:
    return [min(int(draw.expovariate(0.1)), V - 1) for _ in range(count)]


@pytest.mark.parametrize(("num_lists", "has_floor"), [(1, False), (3, False), (1, True), (3, True)])
def test_a_curve_is_that_of_its_definition(num_lists: int, has_floor: bool) -> None:
    """Two requests in turn; the curve follows one text after the other, each to its end."""
    draw = random.Random(num_lists)
    sizes = (1, 8, 20, V)
    ranks = draw.sample(range(V), V)
    lists = LearnedLists(V, num_lists=num_lists, num_requests=2, prior=ranks)
    curve = CoverageCurve(lists, sizes, has_floor=has_floor)
    texts = [Counter[int]() for _ in range(num_lists)]
    want, followed = [0] * len(sizes), None
    running: dict[int, tuple[set[int], set[int]]] = {}  # a request's prompt and text
    for turn in range(30):
        request = draw.choice((0, 0, 1))
        if followed == request:
            said, written = running[request]
            chosen = int(lists.request_lists[request])
            # The order without this text.
            own = texts[chosen] - Counter(written)
            total = sum(texts, Counter()) - Counter(written)
            if has_floor:
                own = total
            order = sorted(range(V), key=lambda t: (-own[t], -total[t], ranks.index(t)))
            for i, size in enumerate(sizes):
                first = order[: max(1, int((FLOOR_SHARE if has_floor else 1) * size))]
                want[i] += len(written - said - set(first))
            followed = None
        if followed is None:
            followed = request
        prompt = [*words(draw, 6), -1, V + 3]
        curve.begin(request, torch.tensor(prompt))
        assert curve.misses.tolist() == want, turn
        lists.begin(request, torch.tensor(prompt))
        running[request] = (set(prompt), set())
        text = words(draw, 12)
        lists.count(torch.tensor(text), token_requests=torch.full((12,), request))
        texts[int(lists.request_lists[request])].update(set(text))
        running[request][1].update(text)
    assert want[0] > want[1] > want[2] > want[3]


def test_misses_go_from_expected_to_measured() -> None:
    sizes = (1024, 3072, 8192)
    none = misses_of_sizes(sizes, (0, 0, 0), at=3072, hits=0, misses=0)
    assert none == pytest.approx({size: expected_misses(size) for size in sizes})
    many = misses_of_sizes(sizes, (90_000, 30_000, 10_000), at=3072, hits=980_000, misses=20_000)
    assert many == pytest.approx({1024: 0.06, 3072: 0.02, 8192: 0.02 / 3}, rel=0.01)
    crowded = misses_of_sizes(sizes, (0, 0, 0), at=1024, hits=0, misses=0, num_requests=8)
    assert crowded == pytest.approx({size: expected_misses(size, 8) for size in sizes})


@pytest.mark.parametrize("groups", [1, 2])
def test_narrow_traffic_needs_fewer_tokens(groups: int, caplog: pytest.LogCaptureFixture) -> None:
    """K changes where a request begins, in its own group alone, and the log says why."""
    caplog.set_level(logging.INFO, "microspec_kernels")
    vocab_size, room = 40_000, 8192
    costs = StepCosts(1e9, 0.1e9, 8192, vocab_size, num_requests=2, shared=groups == 1)
    vocab = ActiveVocab(vocab_size, room, num_groups=groups)
    lists = LearnedLists(vocab_size, num_lists=1, num_requests=2)
    learned = LearnedVocab(vocab, lists, costs)
    auto = learned.auto
    assert auto is not None and auto.limit == choose_capacity(costs, largest=room).capacity
    first = auto.limit
    assert vocab.limit.tolist() == [first] * groups and 1024 < first < room
    assert vocab.size.tolist() == vocab.limit.tolist()
    draw, before = random.Random(1), [first] * groups
    for turn in range(16):
        request = turn % 2
        limit = auto.limit
        learned.begin(request, torch.tensor(words(draw, 10)))
        if turn < 7:
            assert auto.limit == first
        if auto.limit != limit:
            assert turn % 2 == 1
        group = 0 if groups == 1 else request
        before[group] = auto.limit  # the other group keeps its own
        assert vocab.limit.tolist() == before
        text = torch.tensor(words(draw, 300))
        lists.tally.verdicts[0, request] += len(text)  # every token was active
        lists.count(text, token_requests=torch.full((300,), request))
    assert auto.limit == 1024
    assert vocab.limit.tolist() == [1024] * groups
    last = caplog.messages[-1]
    assert last.startswith("microspec: K = 1024 of 40000 rows") and "measured" in last
    assert len(caplog.messages) <= 2


def test_without_costs_k_is_the_number_of_slots() -> None:
    vocab, lists = ActiveVocab(100, 20), LearnedLists(100, num_requests=2)
    learned = LearnedVocab(vocab, lists)
    assert learned.auto is None and learned.floor == 15
    for request in (0, 1) * 5:
        learned.begin(request, torch.tensor([1]))
    assert vocab.limit.tolist() == [20]


def test_a_choice_knows_what_was_counted_at_the_size_in_use() -> None:
    """Verdicts before a change of K belong to another size, so they no longer count."""
    costs = StepCosts(1e9, 0.1e9, 8192, 40_000)
    lists = LearnedLists(40_000, num_lists=1)
    verdicts = lists.tally.verdicts
    auto = LearnedVocab(ActiveVocab(40_000, 8192), lists, costs).auto
    assert auto is not None
    sizes = [size for size in SIZES if size <= 8192]
    before, limits = torch.zeros(2), [auto.limit]
    for counted in ((600, 400), (90_000, 10_000), (90_000, 100)):
        at, newest = auto.limit, torch.tensor(counted)
        verdicts[:, 0] += newest
        for _ in range(8):
            auto.begin(0, torch.tensor([1]))
        hits, misses = (verdicts[:, 0] - before).tolist()
        of_size = misses_of_sizes(sizes, [0] * len(sizes), at=at, hits=hits, misses=misses)
        want = choose_capacity(costs, of_size.__getitem__, largest=8192)
        if auto.limit != at:
            assert auto.choice == want
            before = verdicts[:, 0].clone()
        limits.append(auto.limit)
    assert limits[1] > limits[0] and limits[-1] < limits[1]


def test_a_choice_is_for_the_most_requests_that_ran() -> None:
    costs = StepCosts(15e9, 0.5e9, 8192, 128256)
    lists = LearnedLists(128256, num_lists=1)
    auto = LearnedVocab(ActiveVocab(128256, 32768), lists, costs).auto
    assert auto is not None
    for count in (3, 64, 8):
        auto.running(count)
    for _ in range(8):
        auto.begin(0, torch.tensor([1]))
    assert auto.costs == replace(costs, num_requests=64)
    limit = auto.limit  # as a gain below a hundredth does not change it
    assert auto.choice == judge_capacity(auto.costs, limit, expected_misses(limit, 64))


def test_a_reset_forgets_what_was_measured() -> None:
    """The choices that follow are those of a new one at the same K."""
    costs, autos, verdicts = StepCosts(1e9, 0.1e9, 8192, 40_000), [], []
    for _ in range(2):
        lists = LearnedLists(40_000, num_lists=1)
        auto = LearnedVocab(ActiveVocab(40_000, 8192), lists, costs).auto
        assert auto is not None
        autos.append(auto)
        verdicts.append(lists.tally.verdicts)
    used, new = autos
    verdicts[0][:, 0] = torch.tensor((90_000, 10))
    used.running(1)
    for _ in range(11):
        used.begin(0, torch.tensor([1]))
    assert used.limit < new.limit
    new.choice, new.costs = used.choice, used.costs
    verdicts[0].zero_()
    used.running(64)
    used.reset()
    for turn in range(9):
        for counted in verdicts:
            counted[:, 0] += torch.tensor((100, 60))
        for auto in autos:
            auto.begin(0, torch.tensor([turn]))
        assert used.choice == new.choice and used.costs == new.costs, turn
    assert used.limit > 1024


@pytest.mark.parametrize(("groups", "requests"), [(1, 1), (1, 2), (2, 2)])
def test_a_vocabulary_knows_whether_it_is_shared(groups: int, requests: int) -> None:
    """One request alone has no floor: with nothing counted, K = 1024 misses token 900 in one only.

    The costs say it wrongly here.
    """
    lists = LearnedLists(40_000, num_lists=1, num_requests=requests)
    costs = StepCosts(1e9, 0.1e9, 8192, 40_000, num_requests=requests, shared=groups == 2)
    vocab = ActiveVocab(40_000, 4096, num_groups=groups)
    learned = LearnedVocab(vocab, lists, costs)
    assert learned.auto is not None and learned.auto.costs.shared == (groups == 1)
    learned.begin(0, torch.tensor([7]))
    lists.count(torch.tensor([900]), token_requests=torch.tensor([0]))
    learned.begin(0, torch.tensor([7]))
    assert int(learned.auto._curve.misses[0]) == (requests > groups)
