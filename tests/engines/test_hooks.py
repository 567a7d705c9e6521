# SPDX-License-Identifier: Apache-2.0
"""The plugins' hooks inside the engines: what a step launches, and a hook that fails."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sglang_runs
import vllm_runs
from checkpoints import of_ring
from probes import FAILS_AT, LAUNCHES
from sglang_checkpoints import convert

OBSERVE = "microspec::vocab_observe_"
ERROR = "MicroSpec: failed, and is off from now on"


@pytest.fixture(scope="session")
def folder(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sglang_hooks")
    convert(checkpoints, path)
    return path


def run(
    engine: str, checkpoints: Path, folder: Path, lengths: tuple[int, ...], **more: Any
) -> tuple[Any, list[Any]]:
    """Let an engine continue prompts on the target; return the run and the texts of its target."""
    prompts = [of_ring(3, 6), of_ring(9, 6), of_ring(5, 6)][: len(lengths)]
    if engine == "SGLang":
        rounds = [[(p, {"max_new_tokens": n}) for p, n in zip(prompts, lengths, strict=True)]]
        done: Any = sglang_runs.run(folder, "eagle", rounds, **more)
        alone: Any = sglang_runs.run(folder, None, rounds)
    else:
        rounds = [[vllm_runs.request(p, n) for p, n in zip(prompts, lengths, strict=True)]]
        done = vllm_runs.run(checkpoints, engine, "noisy", "eagle", rounds, **more)
        alone = vllm_runs.run(checkpoints, engine, "noisy", None, rounds)
    assert done.code == 0, done.log
    return done, alone.rounds


ENGINES = ["V1", "V2", "SGLang"]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_step_launches(engine: str, checkpoints: Path, folder: Path, tmp_path: Path) -> None:
    """In a step of the requests of the step before; a request that joins or leaves copies more."""
    file = tmp_path / "launches"
    settings = {"capacity": 48, "target_top_k": 3}
    done, alone = run(
        engine, checkpoints, folder, (30,), settings=settings, environment={LAUNCHES: str(file)}
    )
    assert done.rounds == alone, done.log
    steps = [tuple(json.loads(line)) for line in file.read_text().splitlines()]
    (usual, count), *_ = Counter(steps).most_common()
    columns = ["aten::index"] if engine == "SGLang" else []
    assert list(usual) == ["aten::topk", OBSERVE, *columns] and count > len(steps) // 2, steps


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hook_that_fails(engine: str, checkpoints: Path, folder: Path) -> None:
    """The engine goes on with its own head, the text is the target's, and the log has one error."""
    done, alone = run(
        engine, checkpoints, folder, (30, 9, 20), settings={"capacity": 48},
        environment={FAILS_AT: "5"},
    )  # fmt: skip
    assert done.rounds == alone, done.log
    assert done.log.count(ERROR) == 1 and "a test's error" in done.log, done.log
