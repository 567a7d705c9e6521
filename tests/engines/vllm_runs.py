# SPDX-License-Identifier: Apache-2.0
"""Runs of vLLM configurations, each in a separate process, and their results."""

import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints import of_ring
from device import GRAPHS, ON_A_CPU, inherited

FOLDER = Path(__file__).parent
PYTHON = Path(os.environ.get("MICROSPEC_TEST_VLLM") or FOLDER.parents[1] / ".venv-vllm/bin/python")
DRAFTS = {  # folder of the checkpoint: vLLM's name of its method
    "eagle": "eagle",
    "eagle3": "eagle3",
    "eagle3_d2t": "eagle3",
    "draft_model": "draft_model",
    "mtp": "mtp",
}
_ENGINE = {
    "skip_tokenizer_init": True,
    "dtype": "float32",
    "enforce_eager": not GRAPHS,
    "max_model_len": 256,
    "max_num_seqs": 3,
    "block_size": 32,
    "kv_cache_memory_bytes": 32 << 20,
    "disable_log_stats": False,
}
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    **({"VLLM_TARGET_DEVICE": "cpu", "OMP_NUM_THREADS": "1"} if ON_A_CPU else {}),
}
INTERPRETED = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"} if ON_A_CPU else {}
"""On a CPU, vLLM's Triton kernels, which V2 cannot do without, run by Triton's interpreter."""
RUNNERS = {
    "V1": {"VLLM_USE_V2_MODEL_RUNNER": "0"},
    "V2": {"VLLM_USE_V2_MODEL_RUNNER": "1", **INTERPRETED},
}

Request = tuple[Sequence[int], dict[str, Any]]
"""A prompt, and what vLLM's SamplingParams gets."""


@dataclass(frozen=True)
class Run:
    """The results of a process. The log is always set, the rest only if it ended with code 0.

    `rounds` has the tokens of each request of each round, `counters` vLLM's counters by name
    without prefix, and `stats` the plugin's stats of each worker.
    """

    code: int
    log: str
    rounds: list[list[list[int]]]
    counters: dict[str, float]
    stats: list[dict[str, Any]]

    @property
    def accepted(self) -> tuple[float, float]:
        """Return the number of accepted draft tokens and of all draft tokens."""
        names = ("spec_decode_num_accepted_tokens", "spec_decode_num_draft_tokens")
        accepted, drafted = (self.counters[name] for name in names)
        return accepted, drafted


def run(
    checkpoints: Path,
    runner: str,
    target: str,
    draft: str | None,
    rounds: Sequence[Sequence[Request]],
    *,
    settings: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    speculative: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
) -> Run:
    """Let vLLM continue these prompts; run the same configuration only once.

    Args:
        runner: a model runner, "V1" or "V2".
        target, draft: folders in checkpoints.
        settings: the plugin's settings; None leaves the switch off.
        engine: more arguments for LLM(…).
        speculative: more entries of its speculative_config.
        environment: more variables for the process.
    """
    more = dict(engine or {})
    if draft is not None:
        more["speculative_config"] = {
            "method": DRAFTS[draft],
            "model": str(checkpoints / draft),
            "num_speculative_tokens": 4,
            **(speculative or {}),
        }
    switch = {} if settings is None else {"MICROSPEC": json.dumps(settings)}
    configuration = {
        "engine": _ENGINE | {"model": str(checkpoints / target)} | more,
        "rounds": rounds,
        "stats": settings is not None or "additional_config" in more,
    }
    variables = _ENVIRONMENT | RUNNERS[runner] | switch | (environment or {})
    return _run(json.dumps(configuration), json.dumps(variables))


@functools.cache
def _run(configuration: str, variables: str) -> Run:
    if not PYTHON.exists():
        raise FileNotFoundError(f"{PYTHON}: `make test-engines` makes vLLM's environment")
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder, "configuration.json"), Path(folder, "answer.json")
        asked.write_text(configuration)
        done = subprocess.run(
            [PYTHON, FOLDER / "vllm_worker.py", asked, answer],
            env=inherited() | json.loads(variables),
            cwd=folder,  # the repository is not in the path: the test is of the installed package
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        result = {"rounds": [], "counters": {}, "stats": []}
        if answer.exists():
            result = json.loads(answer.read_text())
        return Run(done.returncode, done.stdout, **result)


def request(prompt: list[int], length: int, **sampling: Any) -> Request:
    return prompt, {"max_tokens": length, **sampling}


# Requests of different lengths, more than may run at a time, so that they join and leave; prompts
# longer than a step can read; in the second round prompts with a cached start.
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
    """Run the mixed requests on a target with unpredictable text."""
    engine = CHUNKED | more.pop("engine", {})
    done = run(checkpoints, runner, target, draft, MIXED, engine=engine, **more)
    assert done.code == 0, done.log
    return done
