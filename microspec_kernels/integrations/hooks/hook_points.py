# SPDX-License-Identifier: Apache-2.0
"""Hook points: the functions of an engine that a plugin uses, checked in the engine's source.

The check reads the syntax tree. So it imports no engine module, which may need a GPU, and it works
alike on an installed engine and on an unpacked wheel.
"""

import ast
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from .unsupported import UnsupportedError


class Expectation(Protocol):
    """A fact about an engine's source: a :class:`HookPoint` or one of :mod:`.expectations`."""

    @property
    def module(self) -> str:
        """ "package.module", the source that the fact is about."""

    def problem(self, root: Path) -> str | None:
        """Compare the fact with the package in the folder `root`.

        Returns:
            What is missing or different; None if the fact holds.
        """


@dataclass(frozen=True)
class HookPoint:
    """A function or method of an engine that the plugin calls or replaces.

    Attributes:
        module: "package.module".
        name: "function" or "Class.method", defined in this module unconditionally.
        arguments: names of the arguments that the plugin relies on, including `self`; the function
            may have others.
        positional: whether these are the first arguments, in this order, because calls pass them
            by position.
    """

    module: str
    name: str
    arguments: tuple[str, ...]
    positional: bool = False

    def problem(self, root: Path) -> str | None:
        """Compare the hook point with the package in the folder `root`.

        Returns:
            What is missing or different; None if the hook point fits.
        """
        function = find(root, self.module, self.name)
        if isinstance(function, str):
            return function
        if not isinstance(function, ast.FunctionDef):
            return "not a function"
        if any(isinstance(by, ast.Name) and by.id == "property" for by in function.decorator_list):
            return "a property, not a function"
        args = function.args
        names = [each.arg for each in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
        absent = [name for name in self.arguments if name not in names]
        if absent:
            return f"has no {', '.join(absent)} among {', '.join(names)}"
        first = names[: len(self.arguments)]
        if self.positional and first != list(self.arguments):
            return f"begins with {', '.join(first)}"
        return None

    def __str__(self) -> str:
        return f"{self.module}:{self.name}({', '.join(self.arguments)})"


def find(root: Path, module: str, name: str) -> ast.ClassDef | ast.FunctionDef | str:
    """Find the definition of "function", "Class" or "Class.method" in a module's source.

    Args:
        root: folder of the package.
        module: "package.module".
        name: what the module defines, unconditionally.

    Returns:
        The last definition; a description of the problem if there is none.
    """
    path = module_path(root, module)
    if not path.is_file():
        return "no such module"
    try:
        scope: ast.AST = tree(path)
    except SyntaxError as error:
        return f"not readable as Python, line {error.lineno}"
    for part in name.split("."):
        found = [
            node
            for node in ast.iter_child_nodes(scope)
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == part
        ]
        if not found:
            return f"no {part!r} there"
        scope = found[-1]
    assert isinstance(scope, (ast.ClassDef, ast.FunctionDef))
    return scope


def module_path(root: Path, module: str) -> Path:
    """Return the file of "package.module" in the package's folder; it may not exist."""
    path = root.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def missing_hook_points(hook_points: Iterable[Expectation], root: Path) -> list[str]:
    """Describe each hook point that the package lacks or defines differently."""
    found = ((hook_point, hook_point.problem(root)) for hook_point in hook_points)
    return [f"{hook_point}: {problem}" for hook_point, problem in found if problem is not None]


def check_hook_points(
    engine: str, version: str, tested: str, hook_points: Iterable[Expectation]
) -> None:
    """Refuse an engine in which a hook point is missing.

    Args:
        engine: name of the engine's package.
        version: its installed version.
        tested: the tested versions, for the message.
        hook_points: the hook points and other expectations to look for.

    Raises:
        UnsupportedError: names every missing hook point, or the package is not installed.
    """
    wrong = missing_hook_points(hook_points, package_root(engine))
    if wrong:
        expected = f"the hook points of {engine} {tested}"
        raise UnsupportedError(
            engine, expected, f"version {version} where\n  " + "\n  ".join(wrong)
        )


def package_root(package: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises:
        UnsupportedError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UnsupportedError(package, "an installed package", "none")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def tree(path: Path) -> ast.Module:
    """Parse a source file once.

    Raises:
        SyntaxError: this Python cannot read it.
    """
    return ast.parse(path.read_text(encoding="utf-8"))
