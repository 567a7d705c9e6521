"""Builds csrc/emulation, once per sanitizer, and imports what comes of it.

The builds stay in build/emulation, so that a second run only compiles what changed. ``planted``
beside ``_emulation`` is the module of tests/emulation/planted: small kernels, each with a bug.
"""

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pybind11
from build_with_cmake import ROOT, build_with_cmake

PLANTED = ROOT / "tests" / "emulation" / "planted"
# What the launcher of a process has to preload for a module that a sanitizer instruments.
PRELOAD = {"address": "libasan.so", "thread": "libtsan.so"}


@functools.cache
def build(sanitizer: str = "") -> Path:
    """The folder with the modules; ``sanitizer`` is "address", "thread" or none."""
    return build_with_cmake(
        ROOT / "csrc" / "emulation",
        ROOT / "build" / "emulation" / (sanitizer or "plain"),
        f"-DMICROSPEC_SANITIZE={sanitizer}",
        f"-DMICROSPEC_MODULES={PLANTED.resolve()}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )


@functools.cache
def load(name: str = "_emulation") -> ModuleType:
    folder = str(build())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)
