# SPDX-License-Identifier: Apache-2.0
"""Of two builds in one checkout, the second waits for the first."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_a_build_waits_for_another(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "build").mkdir()
    with open(tmp_path / "build" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build = subprocess.Popen(
            [sys.executable, "setup.py", "--name"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            build.wait(5)
    output, _ = build.communicate(timeout=120)
    assert (build.returncode, output.strip()) == (0, "UNKNOWN")
