"""The plugin inside vLLM, on both of its model runners.

`make test-engines` makes the environment. Without it these tests fail: none of them is skipped.
"""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import RING, VOCAB, continuation, of_ring
from vllm_runs import DRAFTS, RUNNERS, Request, Run, run

SMALL = {"capacity": 48}
"""Less than the texts below need: tokens are evicted all the time."""
ATTACHED = {"V1": "MicroSpec: attached to EagleProposer: ", "V2": "MicroSpec: attached to Eagle"}

both_runners = pytest.mark.parametrize("runner", RUNNERS)
each_draft = pytest.mark.parametrize(
    ("target", "draft"), [("mtp" if draft == "mtp" else "noisy", draft) for draft in DRAFTS]
)


@pytest.fixture(scope="session")
def everything(checkpoints: Path) -> dict[str, Any]:
    """Settings with which every token is active from the start on."""
    return {"capacity": VOCAB, "frequency": str(checkpoints / "all.npy")}


def request(prompt: list[int], length: int, **sampling: Any) -> Request:
    return prompt, {"max_tokens": length, **sampling}


# Requests of different lengths, more than may run at a time, so that they join and leave; prompts
# longer than what a step takes; in the second round prompts whose start is cached.
MIXED = [
    [
        request(of_ring(3, 6), 40),
        request(of_ring(9, 70), 9),
        request(of_ring(5, 3), 30),
        request(of_ring(3, 2, start=7), 20),
        request(of_ring(12, 40), 5),
    ],
    [request(of_ring(9, 70), 9), request(of_ring(3, 6), 10)],
]
CHUNKED = {"max_num_batched_tokens": 32}


def mixed(
    checkpoints: Path, runner: str, draft: str | None, target: str = "noisy", **more: Any
) -> Run:
    """Over a target whose text nobody can foresee."""
    engine = CHUNKED | more.pop("engine", {})
    done = run(checkpoints, runner, target, draft, MIXED, engine=engine, **more)
    assert done.code == 0, done.log
    return done


@each_draft
@both_runners
def test_text_is_the_targets_own(checkpoints: Path, runner: str, target: str, draft: str) -> None:
    alone = mixed(checkpoints, runner, None, target)
    drafted = mixed(checkpoints, runner, draft, target, settings=SMALL)
    assert drafted.rounds == alone.rounds
    accepted, _ = drafted.accepted
    assert accepted > 0
    (figures,) = drafted.figures
    assert figures["active"] == SMALL["capacity"] and figures["rows"] > 2 * SMALL["capacity"] // 3


@each_draft
@both_runners
def test_with_all_tokens_active_as_many_are_accepted_as_without_the_plugin(
    checkpoints: Path, everything: dict[str, Any], runner: str, target: str, draft: str
) -> None:
    without = mixed(checkpoints, runner, draft, target)
    with_all = mixed(checkpoints, runner, draft, target, settings=everything)
    assert with_all.rounds == without.rounds
    assert with_all.accepted == without.accepted
    (figures,) = with_all.figures
    assert figures["rows"] == 0
    assert "MicroSpec: attached to" in with_all.log
    assert "MicroSpec" not in without.log


@both_runners
def test_a_slab_and_more_of_the_targets_tokens(checkpoints: Path, runner: str) -> None:
    settings = SMALL | {"mode": "packed", "slab_dtype": "int8", "top_k": 3}
    done = mixed(checkpoints, runner, "eagle", settings=settings)
    assert done.rounds == mixed(checkpoints, runner, None).rounds
    fewer = mixed(checkpoints, runner, "eagle", settings=SMALL)
    assert done.figures[0]["rows"] > fewer.figures[0]["rows"]


@both_runners
def test_drawn_text_is_the_targets_own(checkpoints: Path, runner: str) -> None:
    """At temperature > 0 verification draws; here from what is all but sure."""
    prompts = [of_ring(3, 6), of_ring(9, 9, start=3), of_ring(5, 40), of_ring(9, 2)]
    rounds = [[request(prompt, 40, temperature=0.1, seed=0) for prompt in prompts]]
    done = run(checkpoints, runner, "target", "eagle", rounds, settings=SMALL, engine=CHUNKED)
    assert done.code == 0, done.log
    assert done.rounds == [[continuation(prompt, 40) for prompt in prompts]]
    accepted, drafted = done.accepted
    assert 0 < accepted < drafted


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
    assert done.accepted[0] > 50


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


@both_runners
def test_preempted_requests(checkpoints: Path, runner: str) -> None:
    """Where there is room for the keys and values of two requests, a third has to give way."""
    rounds = [[request(of_ring(ring, 20), 70) for ring in (3, 9, 5)]]
    engine = {"max_model_len": 128, "kv_cache_memory_bytes": 7 * 147_456}
    texts = []
    for draft, settings in ((None, None), ("eagle", SMALL)):
        done = run(checkpoints, runner, "noisy", draft, rounds, settings=settings, engine=engine)
        assert done.code == 0, done.log
        texts.append(done.rounds)
    assert done.counters["num_preemptions"] > 0
    assert texts[0] == texts[1]


@both_runners
def test_switched_on_by_the_engines_configuration_alone(checkpoints: Path, runner: str) -> None:
    """In an engine core of its own process; and the log of a user's run says so."""
    done = mixed(
        checkpoints,
        runner,
        "eagle",
        engine={"additional_config": {"microspec": SMALL}},
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
    )
    assert done.rounds == mixed(checkpoints, runner, None).rounds
    (line,) = (line for line in done.log.splitlines() if ATTACHED[runner] in line)
    assert "MainProcess" not in line
    (figures,) = done.figures
    assert figures["active"] == SMALL["capacity"]


def test_two_ranks_are_one(checkpoints: Path) -> None:
    """Tensor parallel, over gloo; the draft has rows for a part of the tokens only."""
    runs = [
        mixed(
            checkpoints,
            "V1",
            "eagle3_d2t",
            settings=SMALL,
            engine={"tensor_parallel_size": ranks},
            speculative={"draft_tensor_parallel_size": ranks},
            environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind"},  # one NUMA node may do
        )
        for ranks in (1, 2)
    ]
    assert runs[0].rounds == runs[1].rounds == mixed(checkpoints, "V1", None).rounds
    assert runs[0].accepted == runs[1].accepted
    assert runs[1].figures == 2 * runs[0].figures
