# SPDX-License-Identifier: Apache-2.0
"""The entry points, with a package that does not load.

An engine then ends if the switch is on, and goes on if it is off.
"""

import logging
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

import microspec_plugins

ENGINES = ("vllm", "sglang")
BROKEN = "the library does not load"


class Broken:
    """An import that fails, like that of a package without its library."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.startswith("microspec_kernels"):
            raise ImportError(BROKEN)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("microspec_kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("switch", ["1", '{"capacity": 64}'])
def test_ends_the_engine_where_it_was_asked_for(broken, monkeypatch, engine, switch):
    monkeypatch.setenv("MICROSPEC", switch)
    with pytest.raises(SystemExit, match=f"microspec: {engine}: expected .*{BROKEN}"):
        getattr(microspec_plugins, engine)()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("switch", [None, "", " ", "0", "false"])
def test_only_says_so_where_it_was_not(broken, monkeypatch, caplog, engine, switch):
    monkeypatch.delenv("MICROSPEC", raising=False)
    if switch is not None:
        monkeypatch.setenv("MICROSPEC", switch)
    with caplog.at_level(logging.ERROR, logger=engine):
        getattr(microspec_plugins, engine)()
    assert BROKEN in caplog.text


@pytest.mark.parametrize("engine", ENGINES)
def test_calls_the_engines_own_plugin(monkeypatch, engine):
    called = []
    plugin = SimpleNamespace(register=lambda: called.append(engine))
    monkeypatch.setitem(sys.modules, f"microspec_kernels.integrations.{engine}", plugin)
    EntryPoint("microspec", f"microspec_plugins:{engine}", "").load()()
    assert called == [engine]


def test_is_loaded_without_the_package(broken, monkeypatch):
    monkeypatch.delitem(sys.modules, "microspec_plugins")
    assert callable(EntryPoint("microspec", "microspec_plugins:vllm", "").load())
