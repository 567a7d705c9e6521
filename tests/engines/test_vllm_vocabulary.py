# SPDX-License-Identifier: Apache-2.0
"""The active tokens of a draft inside vLLM, over a target whose text is known in advance."""

from pathlib import Path

import pytest
from checkpoints import RING, VOCAB, continuation, of_ring
from vllm_runs import CHUNKED, RUNNERS, request, run

TEXT = {"learn": False, "target_top_k": 0}
"""Only the texts' own tokens become active."""

both_runners = pytest.mark.parametrize("runner", RUNNERS)


@both_runners
def test_vocabulary_learns_exactly_what_was_seen(checkpoints: Path, runner: str) -> None:
    """A text's tokens become active one by one; after one turn of its ring no token is new."""
    prompts = [of_ring(3, 6), of_ring(9, 9, start=3), of_ring(5, 3), of_ring(7, 40)]
    rounds = [[request(prompt, 50) for prompt in prompts]]
    settings = {"capacity": VOCAB} | TEXT
    done = run(checkpoints, runner, "target", "eagle", rounds, settings=settings, engine=CHUNKED)
    assert done.code == 0, done.log
    assert done.rounds == [[continuation(prompt, 50) for prompt in prompts]]
    (stats,) = done.stats
    assert stats["misses"] == sum(max(RING - len(prompt), 0) for prompt in prompts)
    assert stats["active"] == RING * len(prompts)
    accepted, _ = done.accepted
    assert 50 < accepted < stats["hits"]


@both_runners
def test_a_cached_prefix_is_learnt(checkpoints: Path, runner: str) -> None:
    """The cache has the prefix's keys and values, so no step reads its tokens."""
    tail = of_ring(3, 3)
    prompt = of_ring(3, RING) + of_ring(5, RING) + tail
    others = [of_ring(ring, RING) for ring in (8, 10, 12)]
    rounds = [[request(prompt, 2)], [request(other, 2) for other in others], [request(prompt, 20)]]
    settings = {"capacity": 3 * RING} | TEXT
    done = run(checkpoints, runner, "target", "eagle", rounds, settings=settings)
    assert done.code == 0, done.log
    assert done.rounds[2] == [continuation(prompt, 20)]
    assert done.counters["prefix_cache_hits"] >= RING
    (stats,) = done.stats
    assert stats["misses"] == 0  # its tokens were evicted in between, and are active again


def test_a_vocabulary_for_each_request(checkpoints: Path) -> None:
    """The capacity is two rings, and the requests together need three."""
    prompts = [of_ring(ring, RING) for ring in (3, 9, 5)]
    # They take slots of earlier requests; one of those had the same ring.
    later = [of_ring(3, 4)] * 3
    rounds = [
        [request(prompt, 40) for prompt in prompts],
        [request(prompt, 20) for prompt in later],
    ]
    misses = {}
    for vocabulary in ("request", "shared"):
        settings = {"capacity": 2 * RING, "vocabulary": vocabulary} | TEXT
        done = run(checkpoints, "V2", "target", "eagle", rounds, settings=settings)
        assert done.code == 0, done.log
        assert done.rounds[0] == [continuation(prompt, 40) for prompt in prompts]
        assert done.rounds[1] == [continuation(prompt, 20) for prompt in later]
        misses[vocabulary] = done.stats[0]["misses"]
    # A request's vocabulary has all of its ring, or the prompt only.
    assert misses["request"] == len(later) * 20
    assert misses["shared"] > misses["request"]
