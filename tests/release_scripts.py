# SPDX-License-Identifier: Apache-2.0
"""Load a script of release/, which is a folder of programs and not a package."""

import importlib.util
from pathlib import Path
from types import ModuleType

RELEASE = Path(__file__).parents[1] / "release"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RELEASE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
