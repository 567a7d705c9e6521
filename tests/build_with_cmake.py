# SPDX-License-Identifier: Apache-2.0
"""Build C++ for the tests, once per folder of build/; later builds compile changes only."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> None:
    # cmake and ninja may be installed beside this Python, outside the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}{done.stderr[-8000:]}"


def build_with_cmake(source: Path, folder: Path, *options: str, target: str = "all") -> Path:
    """Build ``target`` and return its folder; one process builds at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    folder, source = folder.resolve(), source.resolve()
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja", *options)
        run("cmake", "--build", str(folder), "--target", target)
    return folder
