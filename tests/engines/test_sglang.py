# SPDX-License-Identifier: Apache-2.0
"""The plugin inside SGLang.

`make test-engines` makes the environment. Without it these tests fail; none of them is skipped.
"""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import VOCAB, continuation, following, of_ring
from laws import check_flat_law
from sglang_checkpoints import convert
from sglang_runs import Request, Run, run

SMALL = {"capacity": 48}
"""Less than the texts below need: tokens are evicted all the time."""
UNLEARNED = {"learn": False}
CASES = [  # the target, its draft, and the drafts' shape
    ("noisy", "eagle", "chain"),
    ("noisy", "eagle", "tree"),
    ("noisy", "eagle3", "chain"),
    ("noisy", "eagle3_d2t", "tree"),
    ("mtp", "mtp", "chain"),
]
CLASSES = {
    "eagle": "LlamaForCausalLMEagle",
    "eagle3": "LlamaForCausalLMEagle3",
    "eagle3_d2t": "LlamaForCausalLMEagle3",
    "mtp": "MiMoMTP",
}
"""The class of SGLang's that a draft is loaded into."""

each_case = pytest.mark.parametrize(("target", "draft", "shape"), CASES)


@pytest.fixture(scope="session")
def sglang_checkpoints(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sglang_checkpoints")
    convert(checkpoints, folder)
    return folder


@pytest.fixture(scope="session")
def everything(checkpoints: Path) -> dict[str, Any]:
    """Return settings with which every token is active from the start."""
    return {"capacity": VOCAB, "frequent_tokens_file": str(checkpoints / "all.npy")}


def request(prompt: list[int], length: int) -> Request:
    return prompt, {"max_new_tokens": length}


# Requests of different lengths, more than may run at a time, so that they join and leave; prompts
# longer than a step can read; in the second round a prompt with a cached start.
MIXED = [
    [
        request(of_ring(3, 40), 10),
        request(of_ring(9, 70), 4),
        request(of_ring(5, 3), 6),
        request(of_ring(12, 40), 3),
    ],
    [request(of_ring(9, 75), 4)],
]


def mixed(checkpoints: Path, draft: str | None, **more: Any) -> Run:
    """Run the mixed requests."""
    done = run(checkpoints, draft, MIXED, engine={"chunked_prefill_size": 32}, **more)
    assert done.code == 0 and len(done.rounds) == len(MIXED), done.log
    return done


@each_case
def test_text_is_the_targets_own(
    sglang_checkpoints: Path, target: str, draft: str, shape: str
) -> None:
    alone = mixed(sglang_checkpoints, None, target=target)
    drafted = mixed(sglang_checkpoints, draft, target=target, shape=shape, settings=SMALL)
    assert drafted.rounds == alone.rounds
    assert f"MicroSpec: attached to EagleDraftWorker: {CLASSES[draft]}, " in drafted.log
    assert "MicroSpec metrics: Coverage: " in drafted.log


@each_case
def test_with_all_tokens_active_as_many_are_accepted_as_without_the_plugin(
    sglang_checkpoints: Path, everything: dict[str, Any], target: str, draft: str, shape: str
) -> None:
    without = mixed(sglang_checkpoints, draft, target=target, shape=shape)
    with_all = mixed(sglang_checkpoints, draft, target=target, shape=shape, settings=everything)
    assert with_all.rounds == without.rounds
    assert with_all.accepted == without.accepted
    assert "MicroSpec" not in without.log


def test_a_draft_chosen_before_its_tokens_were_evicted(sglang_checkpoints: Path) -> None:
    """A token that draft-extend chose must still be drafted after its eviction.

    Between the first request's draft-extend and its first draft, the second request begins, and its
    prompt takes the slots of the chosen token and its successors.
    """
    prompts = of_ring(3, 35), of_ring(9, 40)
    done = run(
        sglang_checkpoints,
        "eagle",
        [[request(prompt, 3) for prompt in prompts]],
        target="target",
        settings=SMALL | UNLEARNED,
        engine={"chunked_prefill_size": 35},  # the first prompt alone
    )
    assert done.rounds == [[continuation(prompt, 3) for prompt in prompts]], done.log
    assert done.accepted == [[[0, 1], [0, 0, 0, 1]]]


def test_the_law_of_verified_drafts(sglang_checkpoints: Path) -> None:
    """Drafts from few active tokens leave the law of a flat target as it is.

    The first token of a text comes from its prompt, the others from verified drafts. On a CPU,
    sglang_worker.py lets SGLang verify as on a GPU.
    """
    texts, start = 24, of_ring(3, 6)
    done = run(
        sglang_checkpoints,
        "eagle",
        [[(start, {"max_new_tokens": 8, "temperature": 1.0})] * texts],
        target="flat",
        shape="tree",
        settings=SMALL,
        engine={"max_running_requests": 24, "max_total_tokens": 4096, "random_seed": 7},
    )
    assert done.code == 0, done.log
    accepted = [sum(counts[1:]) for counts in done.accepted[0] if counts is not None]
    assert sum(accepted) > 0
    check_flat_law(done.rounds[0], start[-1])


def test_new_weights(sglang_checkpoints: Path, everything: dict[str, Any]) -> None:
    """The new target counts by two; the draft has the target's LM head, here in a slab."""
    prompt = of_ring(3, 5)
    done = run(
        sglang_checkpoints,
        "eagle",
        [[request(prompt, 9)], str(sglang_checkpoints / "by_two"), [request(prompt, 9)]],
        target="target",
        settings=everything | {"mode": "packed"},
    )
    by_two = [prompt[-1]]
    for _ in range(9):
        by_two.append(following(following(by_two[-1])))
    assert done.rounds == [[continuation(prompt, 9)], [by_two[1:]]], done.log
    assert done.accepted == [[[0, 0, 0, 2]], [[0, 0, 0, 2]]]


def test_two_ranks(sglang_checkpoints: Path) -> None:
    prompts = of_ring(3, 35), of_ring(9, 40)
    done = run(
        sglang_checkpoints,
        "eagle",
        [[request(prompt, 9) for prompt in prompts]],
        target="target",
        shape="tree",
        # Room for the texts' own tokens, and nothing else enters.
        settings={"capacity": 64, "mode": "packed", "target_top_k": 0} | UNLEARNED,
        engine={"tp_size": 2},
        environment={"SGLANG_CPU_OMP_THREADS_BIND": "0|1"},
    )
    assert done.rounds == [[continuation(prompt, 9) for prompt in prompts]], done.log
    assert done.accepted == [[[0, 0, 0, 2]] * 2]
    assert done.log.count("MicroSpec: attached to") == 2


@pytest.mark.parametrize(
    ("settings", "draft", "message"),
    [
        ({"slots": 3}, "eagle", "'slots'"),
        ({"vocabulary": "request"}, "eagle", "vocabulary: expected 'shared'"),
        (SMALL, None, "speculative_algorithm: expected one of EAGLE, EAGLE3, got None"),
    ],
)
def test_what_is_not_served_ends_sglang(
    sglang_checkpoints: Path, settings: dict[str, Any], draft: str | None, message: str
) -> None:
    rounds = [[request(of_ring(3, 6), 4)]]
    done = run(sglang_checkpoints, draft, rounds, target="target", settings=settings)
    assert done.code != 0 and done.rounds == []
    (said,) = {line for line in done.log.splitlines() if line.startswith("microspec: ")}
    assert message in said
