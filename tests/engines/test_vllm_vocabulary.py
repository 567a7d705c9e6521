"""What a draft's vocabulary knows inside vLLM, over a target whose text is known beforehand."""

from pathlib import Path

import pytest
from checkpoints import RING, VOCAB, continuation, of_ring
from vllm_runs import CHUNKED, RUNNERS, Request, request, run

both_runners = pytest.mark.parametrize("runner", RUNNERS)


@both_runners
def test_vocabulary_learns_exactly_what_was_seen(checkpoints: Path, runner: str) -> None:
    """A text becomes known token by token; after one turn of its ring nothing is new."""
    prompts = [of_ring(3, 6), of_ring(9, 9, start=3), of_ring(5, 3), of_ring(7, 40)]
    rounds = [[request(prompt, 50) for prompt in prompts]]
    settings = {"capacity": VOCAB}
    done = run(checkpoints, runner, "target", "eagle", rounds, settings=settings, engine=CHUNKED)
    assert done.code == 0, done.log
    assert done.rounds == [[continuation(prompt, 50) for prompt in prompts]]
    (figures,) = done.figures
    # The first token of a text was not drafted; of the others, the new ones are those missed.
    assert figures["misses"] == sum(max(RING - len(prompt) - 1, 0) for prompt in prompts)
    assert figures["rows"] == figures["active"] == RING * len(prompts)
    accepted, _ = done.accepted
    assert 50 < accepted < figures["hits"]


@both_runners
def test_a_cached_prefix_is_learnt(checkpoints: Path, runner: str) -> None:
    """Its keys and values are there, so that no step sees its tokens."""
    tail = of_ring(3, 3)
    prompt = of_ring(3, RING) + of_ring(5, RING) + tail
    others = [of_ring(ring, RING) for ring in (8, 10, 12)]
    rounds = [[request(prompt, 2)], [request(other, 2) for other in others], [request(prompt, 20)]]
    settings = {"capacity": 3 * RING}
    done = run(checkpoints, runner, "target", "eagle", rounds, settings=settings)
    assert done.code == 0, done.log
    assert done.rounds[2] == [continuation(prompt, 20)]
    assert done.counters["prefix_cache_hits"] >= RING
    (figures,) = done.figures
    assert figures["misses"] == 0
    assert figures["rows"] == 7 * RING  # evicted in between, and entered again


def test_a_vocabulary_for_each_request(checkpoints: Path) -> None:
    """Each is as large as one ring: together they would evict each other's tokens."""
    full = [request(of_ring(ring, RING), 40) for ring in (3, 9, 5, 7, 11)]
    known_to_others = [request(of_ring(ring, 4), 20) for ring in (3, 9)]
    misses = {}
    for vocabulary in ("request", "shared"):
        settings = {"capacity": RING, "vocabulary": vocabulary}
        done = run(checkpoints, "V2", "target", "eagle", [full, known_to_others], settings=settings)
        assert done.code == 0, done.log
        expected = [
            [continuation(*_asked(one)) for one in some] for some in (full, known_to_others)
        ]
        assert done.rounds == expected
        misses[vocabulary] = done.figures[0]["misses"]
    # Of the second round all is new, although the requests before knew those tokens.
    assert misses["request"] == 2 * (20 - 1)
    assert misses["shared"] > 100


def _asked(one: Request) -> tuple[list[int], int]:
    prompt, sampling = one
    return list(prompt), sampling["max_tokens"]
