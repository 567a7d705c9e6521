# SPDX-License-Identifier: Apache-2.0
"""EngineHead under tensor parallelism, in 2 and 3 processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

TESTS = Path(__file__).parent.parent


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes(ranks: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "integrations.engine_worker", str(ranks), tmp_path / "store"]
    # The processes share one machine: they need no name resolution, and one core each is enough.
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    # Gloo of torch 2.10 writes lines there, too, and pieces of lines.
    results = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert results == [str(ranks)] * ranks
