"""Builds csrc/emulation, once per sanitizer, and imports what comes of it.

The builds stay in build/emulation, so that a second run only compiles what changed. ``planted``
beside ``_emulation`` is the module of tests/emulation/planted: small kernels, each with a bug.
"""

import fcntl
import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[1]
PLANTED = ROOT / "tests" / "emulation" / "planted"
# What the launcher of a process has to preload for a module that a sanitizer instruments.
PRELOAD = {"address": "libasan.so", "thread": "libtsan.so"}


def _run(*command: str) -> None:
    # cmake and ninja may have been installed beside this Python, which need not be in the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-8000:]}{done.stderr[-8000:]}"


@functools.cache
def build(sanitizer: str = "") -> Path:
    """The folder with the modules; ``sanitizer`` is "address", "thread" or none."""
    folder = ROOT / "build" / "emulation" / (sanitizer or "plain")
    folder.mkdir(parents=True, exist_ok=True)
    folder, source = folder.resolve(), (ROOT / "csrc" / "emulation").resolve()
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run(
            "cmake",
            *("-S", str(source), "-B", str(folder), "-G", "Ninja"),
            f"-DMICROSPEC_SANITIZE={sanitizer}",
            f"-DMICROSPEC_MODULES={PLANTED.resolve()}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
        )
        _run("cmake", "--build", str(folder))
    return folder


@functools.cache
def load(name: str = "_emulation") -> ModuleType:
    folder = str(build())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)
