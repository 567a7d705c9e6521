# SPDX-License-Identifier: Apache-2.0
"""Build csrc/emulation, once per sanitizer, and import its modules.

The builds stay in build/emulation, so a second run compiles changes only. Module ``planted``,
beside ``_emulation``, comes from tests/emulation/planted: small kernels with one bug each.
"""

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pybind11
from build_with_cmake import ROOT, build_with_cmake

PLANTED = ROOT / "tests" / "emulation" / "planted"
# libraries that a process must preload before it imports an instrumented module
PRELOAD = {"address": "libasan.so", "thread": "libtsan.so"}


@functools.cache
def build(sanitizer: str = "") -> Path:
    """Build the modules and return their folder; ``sanitizer`` is "address", "thread" or none."""
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
