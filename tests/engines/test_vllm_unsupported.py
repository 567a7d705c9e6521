# SPDX-License-Identifier: Apache-2.0
"""An unsupported setup ends vLLM with a message that names it; the plugin never just turns off."""

import json
from pathlib import Path
from typing import Any

from checkpoints import of_ring
from vllm_runs import Run, run

ROUNDS = [[(of_ring(3, 6), {"max_tokens": 4})]]
ON = {"capacity": 48}


def refused(
    checkpoints: Path, *, runner: str = "V1", draft: str | None = "eagle", **more: Any
) -> str:
    done: Run = run(checkpoints, runner, "target", draft, ROUNDS, **({"settings": ON} | more))
    assert done.code != 0 and done.rounds == [], done.log
    messages = [line for line in done.log.splitlines() if "microspec: " in line]
    assert messages, done.log
    return messages[-1][messages[-1].index("microspec: ") :]


def test_another_version(checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text('import vllm\n\nvllm.__version__ = "0.99.1"\n')
    message = refused(checkpoints, environment={"PYTHONPATH": str(tmp_path)})
    assert "0.32" in message and "0.99.1" in message


def test_no_drafts(checkpoints: Path) -> None:
    assert "vllm: speculative_config: expected" in refused(checkpoints, draft=None)


def test_drafts_without_an_lm_head(checkpoints: Path) -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
    message = refused(checkpoints, draft=None, engine={"speculative_config": ngram})
    assert "speculative_config.method" in message and "ngram" in message


def test_vocabularies_of_requests_with_runner_v1(checkpoints: Path) -> None:
    message = refused(checkpoints, settings=ON | {"vocabulary": "request"})
    assert "model runner V1" in message and "'request'" in message


def test_drafts_that_are_drawn(checkpoints: Path) -> None:
    message = refused(checkpoints, speculative={"draft_sample_method": "probabilistic"})
    assert "draft_sample_method" in message and "probabilistic" in message


def test_settings_that_do_not_exist(checkpoints: Path) -> None:
    assert "slots" in refused(checkpoints, settings={"slots": 3})


def test_asked_for_twice_and_differently(checkpoints: Path) -> None:
    other = {"additional_config": {"microspec": {"capacity": 7}}}
    message = refused(checkpoints, engine=other)
    assert "additional_config" in message and "capacity=48" in message and "capacity=7" in message


def test_in_an_engine_core_of_its_own_process(checkpoints: Path) -> None:
    """The process that the user started ends here, too, and its log names the reason."""
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    settings = ON | {"frequent_tokens_file": str(checkpoints / "none.npy")}
    message = refused(checkpoints, environment=environment, settings=settings)
    assert "none.npy" in message


def test_a_text_that_is_no_switch(checkpoints: Path) -> None:
    message = refused(checkpoints, settings=None, environment={"MICROSPEC": "yes"})
    assert "expected 0, 1 or a JSON object" in message and json.dumps("yes")[1:-1] in message
