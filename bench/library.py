"""Which build of the library a benchmark measures: to compare two of them on one machine."""

import importlib.util
import sys
from pathlib import Path

PACKAGE = "microspec_kernels"


def use(path: Path) -> None:
    """Let ``import microspec_kernels`` load this library; to be called before the first import.

    The module that knows the library's place is imported ahead of its package and told another.
    """
    assert PACKAGE not in sys.modules, f"{PACKAGE} has been imported, with its own library"
    name = f"{PACKAGE}._library"
    source = Path(__file__).resolve().parents[1] / PACKAGE / "_library.py"
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PATH = path.resolve(strict=True)
    sys.modules[name] = module
