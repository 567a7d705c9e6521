# SPDX-License-Identifier: Apache-2.0
"""Choose which build of the compiled library a process loads, to compare builds on one machine."""

import importlib.util
import os
import sys
from pathlib import Path

PACKAGE = "microspec_kernels"
VARIABLE = "MICROSPEC_BENCH_LIBRARY"


def environment(library: Path) -> dict[str, str]:
    """Return the environment of a benchmark process that loads `library`."""
    return {**os.environ, VARIABLE: str(library.resolve(strict=True))}


def use_requested() -> None:
    """Let the package load the library that the environment names, if it names one.

    ``bench/__init__.py`` calls this, because it runs before any benchmark imports the package.
    """
    if library := os.environ.get(VARIABLE):
        use(Path(library))


def use(library: Path) -> None:
    """Let ``import microspec_kernels`` load `library`. Call it before the first such import.

    The module that holds the library's path is imported ahead of its package and given another.
    """
    assert PACKAGE not in sys.modules, f"{PACKAGE} has been imported, with its own library"
    name = f"{PACKAGE}._library"
    source = Path(__file__).resolve().parents[2] / PACKAGE / "_library.py"
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PATH = library.resolve(strict=True)
    sys.modules[name] = module
