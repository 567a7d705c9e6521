# SPDX-License-Identifier: Apache-2.0
"""Steps of SGLang's own LM head inside SGLang: requests that opt out, and coverage that changes."""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import continuation, of_ring
from sglang_checkpoints import convert
from sglang_runs import run
from sglang_worker import QUICK_CHOICES

NO = {"custom_params": {"microspec": False}}


@pytest.fixture(scope="session")
def folder(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sglang_dense")
    convert(checkpoints, path)
    return path


def requests(*rings: int, length: int, **sampling: Any) -> Any:
    return [(of_ring(ring, 6), {"max_new_tokens": length, **sampling}) for ring in rings]


def texts(rounds: Any) -> list[list[list[int]]]:
    return [
        [continuation(prompt, sampling["max_new_tokens"]) for prompt, sampling in each]
        for each in rounds
    ]


def test_requests_that_opt_out_leave_no_trace(folder: Path) -> None:
    """Their drafts are the engine's own, all right; those of another request are of no token."""
    rounds = [requests(3, length=9, **NO), requests(9, length=5)]
    settings = {"capacity": 48, "learn": False, "target_top_k": 0}
    done = run(folder, "eagle", rounds, target="target", settings=settings)
    assert done.code == 0 and done.rounds == texts(rounds), done.log
    assert done.accepted == [[[0, 0, 0, 2]], [[4]]]
    assert "Covered: 0 tokens, Not covered: 2 tokens" in done.log, "not of the first request"


def test_steps_go_dense_and_come_back(folder: Path) -> None:
    """Three rings do not fit into 48 tokens and evict each other; then one ring does."""
    rounds = [requests(0, 1, 2, length=16), requests(3, length=80)]
    settings = {"capacity": 48, "dense_steps": True, "learn": False, "target_top_k": 0}
    done = run(
        folder,
        "eagle",
        rounds,
        target="target",
        settings=settings,
        environment={QUICK_CHOICES: "1"},
    )
    assert done.code == 0 and done.rounds == texts(rounds), done.log
    said = [line for line in done.log.splitlines() if "drafts from now on" in line]
    assert ["own LM head" in line for line in said] == [True, False], said
