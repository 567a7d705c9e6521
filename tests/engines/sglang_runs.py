# SPDX-License-Identifier: Apache-2.0
"""Runs of SGLang configurations in separate processes, and their results."""

import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device import GRAPHS, ON_A_CPU, inherited

FOLDER = Path(__file__).parent
PYTHON = Path(
    os.environ.get("MICROSPEC_TEST_SGLANG") or FOLDER.parents[1] / ".venv-sglang/bin/python"
)
_ENGINE = {
    "skip_tokenizer_init": True,
    "device": "cpu" if ON_A_CPU else "cuda",
    "dtype": "float32",
    "attention_backend": "triton",
    "disable_cuda_graph": not GRAPHS,
    "context_length": 256,
    "max_total_tokens": 2048,
    "max_running_requests": 3,
    "mem_fraction_static": 0.3,
    "decode_log_interval": 4,
    "log_level": "info",
}
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}
if ON_A_CPU:
    _ENVIRONMENT |= {
        "PYTHONPATH": str(FOLDER / "sglang_standin"),
        "SGLANG_USE_CPU_ENGINE": "1",
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
ALGORITHMS = {"eagle": "EAGLE", "eagle3": "EAGLE3", "eagle3_d2t": "EAGLE3", "mtp": "NEXTN"}
"""Folder of the checkpoint: SGLang's algorithm."""
SHAPES = {
    "chain": {"speculative_num_steps": 3, "speculative_eagle_topk": 1},
    "tree": {"speculative_num_steps": 3, "speculative_eagle_topk": 2},
}
_HISTOGRAM = "spec_correct_drafts_histogram"
_NODES = {"chain": 4, "tree": 7}

Request = tuple[Sequence[int], dict[str, Any]]
"""A prompt, and what SGLang's sampling_params get."""


@dataclass(frozen=True)
class Run:
    """The results of a process. The log is always set, the rest only if it ended with code 0.

    `rounds` has the tokens of each request of each round. `accepted` counts, for each request, the
    steps that accepted 0, 1, 2… drafts; it is None without drafts.
    """

    code: int
    log: str
    rounds: list[list[list[int]]]
    accepted: list[list[list[int] | None]]


def run(
    checkpoints: Path,
    draft: str | None,
    rounds: Sequence[Sequence[Request] | str],
    *,
    target: str = "noisy",
    shape: str = "chain",
    settings: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
) -> Run:
    """Let SGLang continue these prompts; run the same configuration only once.

    Args:
        draft, target: folders in checkpoints; the same one if the target brings its draft.
        shape: the drafts' shape, a key of :data:`SHAPES`.
        rounds: requests of each round; a folder instead loads its weights.
        settings: the plugin's settings; None leaves the switch off.
        engine: more arguments for Engine(…).
        environment: more variables for the process.
    """
    options: dict[str, Any] = _ENGINE | {"model_path": str(checkpoints / target)}
    if draft is not None:
        options |= {
            "speculative_algorithm": ALGORITHMS[draft],
            "speculative_num_draft_tokens": _NODES[shape],
            **SHAPES[shape],
        }
        if draft != target:
            options["speculative_draft_model_path"] = str(checkpoints / draft)
    switch = {} if settings is None else {"MICROSPEC": json.dumps(settings)}
    request = {"engine": options | (engine or {}), "rounds": rounds}
    variables = _ENVIRONMENT | switch | (environment or {})
    return _run(json.dumps(request), json.dumps(variables))


@functools.cache
def _run(request: str, variables: str) -> Run:
    if not PYTHON.exists():
        raise FileNotFoundError(f"{PYTHON}: `make test-engines` makes SGLang's environment")
    with tempfile.TemporaryDirectory() as folder:
        asked, answer, log = (Path(folder, name) for name in ("request", "answer", "log"))
        asked.write_text(request)
        with log.open("w") as output:  # processes that outlive the engine would keep a pipe open
            done = subprocess.run(
                [PYTHON, FOLDER / "sglang_worker.py", asked, answer],
                env=inherited() | json.loads(variables),
                cwd=folder,  # not the repository: this tests the installed package
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=600,
            )
        answered = json.loads(answer.read_text())["rounds"] if answer.exists() else []
        return Run(
            done.returncode,
            log.read_text(),
            [[tokens for tokens, _ in requests] for requests in answered],
            [[meta.get(_HISTOGRAM) for _, meta in requests] for requests in answered],
        )
