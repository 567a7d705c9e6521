# SPDX-License-Identifier: Apache-2.0
"""The distribution of the next token, the uniforms, and the choice of the token."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from microspec_kernels.speculative.sampling import (
    BROKEN,
    Sampling,
    checked,
    choose,
    draw,
    race,
    splitmix64,
    uniforms_at,
)

from .distribution import check

LAST = 1 - 2.0**-53


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "temperature: expected >= 0 and finite, got -0.5", {"temperature": -0.5}),
        (ValueError, "temperature: expected >= 0 and finite, got nan", {"temperature": math.nan}),
        (ValueError, "temperature: expected >= 0 and finite, got inf", {"temperature": math.inf}),
        (TypeError, "temperature: expected a number, got str", {"temperature": "1"}),
        (ValueError, r"top_p: expected in \(0, 1\], got 0", {"top_p": 0}),
        (ValueError, r"top_p: expected in \(0, 1\], got 1.01", {"top_p": 1.01}),
        (TypeError, "top_p: expected a number, got NoneType", {"top_p": None}),
        (ValueError, "top_k: expected >= 0, got -1", {"top_k": -1}),
        (TypeError, "top_k: expected an int, got float", {"top_k": 5.0}),
        (ValueError, r"seed: expected in \[0, 2\^64\), got -1", {"seed": -1}),
        (ValueError, r"seed: expected in \[0, 2\^64\), got 18446744073709551616", {"seed": 2**64}),
        (TypeError, "seed: expected an int, got bool", {"seed": True}),
    ],
)
def test_refused(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"Sampling: {message}"):
        Sampling(**arguments)


def warped(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the distribution that `transformers` samples from, in the precision of the logits."""
    ids = torch.empty(0)
    scores = TemperatureLogitsWarper(float(sampling.temperature))(ids, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    return scores.softmax(-1)


@example(logits=[0.0] * 4, temperature=1.0, top_p=0.5, top_k=0)
@given(
    logits=st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=1, max_size=30),
    temperature=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([0.05, 0.25, 0.5, 0.75, 0.999, 1.0]),
    top_k=st.integers(0, 35),
)
def test_warps_ties_as_transformers(
    logits: list[float], temperature: float, top_p: float, top_k: int
) -> None:
    """The same number of tied tokens stays, and the first ones stay."""
    sampling = Sampling(temperature, top_p, top_k)
    row = torch.tensor([logits], dtype=torch.float64)
    got, expected = sampling.probabilities(row)[0].tolist(), warped(row, sampling)[0].tolist()
    assert sorted(got) == pytest.approx(sorted(expected), rel=1e-12)
    for value in set(logits):
        kept = [p > 0 for p, logit in zip(got, logits, strict=True) if logit == value]
        assert kept == sorted(kept, reverse=True)


@given(
    seed=st.integers(0, 2**31),
    vocab=st.integers(1, 500),
    temperature=st.floats(0.05, 5),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 600),
)
def test_warps_anything_as_transformers(
    seed: int, vocab: int, temperature: float, top_p: float, top_k: int
) -> None:
    logits = 4 * torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed))
    sampling = Sampling(temperature, top_p, top_k)
    expected = warped(logits.double(), sampling)
    torch.testing.assert_close(sampling.probabilities(logits), expected, rtol=1e-12, atol=1e-15)


def test_shapes_of_any_rank() -> None:
    logits = torch.randn(2, 3, 17)
    for sampling in (Sampling(), Sampling(0.7, 0.8, 9)):
        whole, flat = sampling.probabilities(logits), sampling.probabilities(logits.view(6, 17))
        assert torch.equal(whole.view(6, 17), flat)
        assert torch.equal(whole[1, 2], sampling.probabilities(logits[1, 2]))
        uniforms = uniforms_at(1, torch.arange(6)).view(2, 3)
        assert torch.equal(
            choose(logits, uniforms, sampling).flatten(),
            choose(flat.log(), uniforms.flatten(), Sampling(1.0)),
        )


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, -math.inf], [1.0, math.nan, 3.0, math.inf]])
    sampling = Sampling(top_p=0.1, top_k=1)
    assert choose(logits, torch.tensor([0.0, LAST]), sampling).tolist() == [1, 1]
    assert sampling.probabilities(logits).tolist() == [[0, 1, 0, 0]] * 2


def test_the_lowest_temperature_is_greedy() -> None:
    logits = torch.tensor([[3e38, 1.0, -3e38], [-3e38, -3e38, -2e38], [-math.inf, 5.0, 4.9]])
    distribution = Sampling(5e-324).probabilities(logits)
    assert distribution.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_distribution_are_refused(value: float) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 2] = value
    with pytest.raises(ValueError, match=f"Sampling: logits: .*finite.* got {value}"):
        Sampling(1.0).probabilities(logits)
    drawn = choose(logits, torch.zeros(3, dtype=torch.float64), Sampling(1.0)).tolist()
    assert drawn[1] == BROKEN and min(drawn[0], drawn[2]) >= 0
    assert checked([drawn[0]]) == [drawn[0]]
    with pytest.raises(ValueError, match="finite largest logit"):
        checked(drawn)
    with pytest.raises(ValueError, match="got -inf"):
        Sampling(1.0).probabilities(torch.full((4,), -math.inf))


@settings(max_examples=200)
@given(
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    scale=st.sampled_from([1.0, 1e-3, 2.0**70, 2.0**-200]),
    number=st.integers(0, 2**53 - 1),
)
def test_draw_is_the_inverse_cdf(weights: list[int], scale: float, number: int) -> None:
    """Compare with exact fractions; on the edge between two shares either neighbour is right."""
    shares = torch.tensor(weights, dtype=torch.float64) * scale
    drawn = int(draw(shares, torch.tensor(number * 2.0**-53, dtype=torch.float64)))
    below, total = sum(weights[:drawn]), sum(weights)
    slack, at = Fraction(1, 2**47), Fraction(number, 2**53)
    assert weights[drawn] > 0
    assert Fraction(below, total) - slack <= at < Fraction(below + weights[drawn], total) + slack


def test_draw_at_the_edges() -> None:
    distribution = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(4, -1)
    uniforms = torch.tensor([0.0, 0.5 - 2.0**-53, 0.5, LAST], dtype=torch.float64)
    assert draw(distribution, uniforms).tolist() == [1, 1, 3, 3]
    assert draw(torch.tensor([0.0, 0.0, 1.0]), uniforms[3]).item() == 2


@pytest.mark.parametrize("vocab", [3, 1000, 131072])
def test_the_last_number_never_draws_from_nothing(vocab: int) -> None:
    """Sums round, but no uniform falls behind the last token with a positive share."""
    distribution = torch.rand(50, vocab, dtype=torch.float64)
    distribution[:, vocab // 2 :] = 0
    drawn = draw(distribution, torch.full((50,), LAST, dtype=torch.float64))
    assert bool((distribution.gather(1, drawn[:, None]) > 0).all())


@pytest.mark.parametrize("rule", [draw, race])
def test_draws_follow_the_distribution(rule: Any) -> None:
    sampling = Sampling(0.8, 0.95, 20)
    distribution = sampling.probabilities(2 * torch.randn(30))
    uniforms = uniforms_at(5, torch.arange(2**18))
    drawn = rule(distribution.expand(2**18, -1), uniforms)
    check(drawn, distribution)
    # The draws are independent across neighbouring positions, too.
    pairs = drawn.view(-1, 2)
    check(pairs[:, 0] * 30 + pairs[:, 1], torch.outer(distribution, distribution).flatten())


def test_splitmix64_known_answers() -> None:
    """Compare with the authors' generator: its first outputs from states 0 and 1234567."""
    words = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    got = splitmix64(torch.tensor(0), torch.arange(3))
    assert [word % 2**64 for word in got.tolist()] == words
    assert int(splitmix64(torch.tensor(1234567), torch.tensor(0))) == 6457827717110365317


def test_a_race_is_never_won_by_nothing() -> None:
    """This includes uniforms on the edge, and a share next to zero beside the winner."""
    distribution = torch.tensor([0.0, 0.75, 0.0, 0.25, 1e-320, 0.0]).double()
    uniforms = torch.cat((torch.tensor([0.0, LAST]).double(), uniforms_at(9, torch.arange(5000))))
    won = race(distribution.expand(len(uniforms), -1), uniforms)
    assert set(won.tolist()) == {1, 3}


@pytest.mark.slow
def test_choices_survive_rounding() -> None:
    """Passes that round differently choose alike; inverse CDFs over as many tokens would not."""
    random = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(400, 50_000, generator=random)
    rounded = logits * (1 + 2e-5 * torch.randn(logits.shape, generator=random))
    uniforms, sampling = uniforms_at(3, torch.arange(400)), Sampling(1.0)
    assert torch.equal(choose(logits, uniforms, sampling), choose(rounded, uniforms, sampling))
    distributions = sampling.probabilities(logits), sampling.probabilities(rounded)
    assert not torch.equal(draw(distributions[0], uniforms), draw(distributions[1], uniforms)), (
        "that is no test"
    )


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_known_answers(counter: Any, key: Any, words: Any) -> None:
    """Compare with Random123's `kat_vectors` for threefry2x32 with 20 rounds."""
    seed, expected = key[0] | key[1] << 32, (words[0] << 32 | words[1]) >> 11
    got = uniforms_at(seed, torch.tensor([counter[0]]), counter[1])
    assert got.dtype == torch.float64 and got.tolist() == [expected * 2.0**-53]


@given(seed=st.integers(0, 2**63 - 1), stream=st.integers(0, 2**32 - 1))
def test_a_number_depends_on_nothing_else(seed: int, stream: int) -> None:
    positions = torch.randint(0, 2**32, (4, 6))
    whole = uniforms_at(seed, positions, stream)
    assert torch.equal(whole[2:3, 3:], uniforms_at(seed, positions[2:3, 3:], stream))
    seeds = torch.tensor([seed, (seed + 1) % 2**63])[:, None]
    streams = torch.tensor([[stream, (stream + 1) % 2**32]])
    table = uniforms_at(seeds, positions[:1, :1], streams)
    assert table[0, 0] == whole[0, 0]
    assert torch.equal(
        table[1:, 1:], uniforms_at(int(seeds[1]), positions[:1, :1], int(streams[0, 1]))
    )


@pytest.mark.parametrize("axis", ["positions", "seeds", "streams"])
def test_numbers_are_uniform_and_independent_of_their_neighbours(axis: str) -> None:
    """Check 2^18 successive positions, seeds or streams: singly, by last bits and in pairs."""
    row, one = torch.arange(2**18 + 1), torch.tensor(7)
    uniforms = {
        "positions": lambda: uniforms_at(0, row),
        "seeds": lambda: uniforms_at(row, one),
        "streams": lambda: uniforms_at(0, one, row),
    }[axis]()
    assert uniforms.min() >= 0 and uniforms.max() < 1
    flat = torch.full((256,), 1 / 256, dtype=torch.float64)
    check((uniforms * 256).long(), flat)
    check((uniforms * 2**53).long() % 256, flat)
    sixteenth = (uniforms * 16).long()
    # Pairs do not overlap, so the samples are independent.
    for first in (0, 1):
        ahead = sixteenth[first : first + 2**18].view(-1, 2)
        check(ahead[:, 0] * 16 + ahead[:, 1], flat)
