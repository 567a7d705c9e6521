# SPDX-License-Identifier: Apache-2.0
"""Modules of engines that are not installed."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest


@contextmanager
def imported(contents: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Make modules with these contents importable, and the packages above them."""
    paths = [path.split(".") for path in contents]
    names = {".".join(parts[:end]) for parts in paths for end in range(1, len(parts) + 1)}
    with pytest.MonkeyPatch.context() as patch:
        for name in sorted(names):
            module = ModuleType(name)
            vars(module).update(contents.get(name, {}))
            patch.setitem(sys.modules, name, module)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
        yield
