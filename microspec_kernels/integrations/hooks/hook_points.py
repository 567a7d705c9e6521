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

from .unsupported import UnsupportedError


@dataclass(frozen=True)
class HookPoint:
    """A function or method of an engine that the plugin calls or replaces.

    Attributes:
        module: "package.module".
        name: "function" or "Class.method", defined in this module unconditionally.
        arguments: names of the arguments that the plugin relies on, including `self`; the function
            may have others.
    """

    module: str
    name: str
    arguments: tuple[str, ...]

    def problem(self, root: Path) -> str | None:
        """Compare the hook point with the package in the folder `root`.

        Returns:
            What is missing or different; None if the hook point fits.
        """
        path = root.joinpath(*self.module.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not path.is_file():
            return "no such module"
        try:
            scope: ast.AST = _tree(path)
        except SyntaxError as error:
            return f"not readable as Python, line {error.lineno}"
        for part in self.name.split("."):
            found = [
                node
                for node in ast.iter_child_nodes(scope)
                if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == part
            ]
            if not found:
                return f"no {part!r} there"
            scope = found[-1]
        if not isinstance(scope, ast.FunctionDef):
            return "not a function"
        if any(isinstance(by, ast.Name) and by.id == "property" for by in scope.decorator_list):
            return "a property, not a function"
        args = scope.args
        names = [each.arg for each in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
        absent = [name for name in self.arguments if name not in names]
        return f"has no {', '.join(absent)} among {', '.join(names)}" if absent else None

    def __str__(self) -> str:
        return f"{self.module}:{self.name}({', '.join(self.arguments)})"


def missing_hook_points(hook_points: Iterable[HookPoint], root: Path) -> list[str]:
    """Describe each hook point that the package lacks or defines differently."""
    found = ((hook_point, hook_point.problem(root)) for hook_point in hook_points)
    return [f"{hook_point}: {problem}" for hook_point, problem in found if problem is not None]


def check_hook_points(
    engine: str, version: str, tested: str, hook_points: Iterable[HookPoint]
) -> None:
    """Refuse an engine in which a hook point is missing.

    Args:
        engine: name of the engine's package.
        version: its installed version.
        tested: the tested versions, for the message.
        hook_points: the hook points to look for.

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
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
