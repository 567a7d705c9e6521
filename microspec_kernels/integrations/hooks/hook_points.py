"""The places of an engine that a plugin stands on, checked by their source before they are used.

By the syntax tree, so that it costs no import (engines' modules may need a GPU) and the same check
reads an installed engine and an unpacked wheel.
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
    """A function or method that is called or replaced.

    module: "package.module". name: "function" or "Class.method", where it is defined and on no
    condition. arguments: the names that the plugin relies on, `self` among them; there may be
    others.
    """

    module: str
    name: str
    arguments: tuple[str, ...]

    def problem(self, root: Path) -> str | None:
        """What is wrong with it in the package whose folder is root; None where nothing is."""
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
        given = scope.args
        names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        absent = [name for name in self.arguments if name not in names]
        return f"has no {', '.join(absent)} among {', '.join(names)}" if absent else None

    def __str__(self) -> str:
        return f"{self.module}:{self.name}({', '.join(self.arguments)})"


def missing_hook_points(hook_points: Iterable[HookPoint], root: Path) -> list[str]:
    """Describe each hook point that the package lacks or defines otherwise."""
    found = ((hook_point, hook_point.problem(root)) for hook_point in hook_points)
    return [f"{hook_point}: {problem}" for hook_point, problem in found if problem is not None]


def check_hook_points(
    engine: str, version: str, tested: str, hook_points: Iterable[HookPoint]
) -> None:
    """Refuse an engine in which a hook point is missing.

    Args:
        engine: the name of its package. version: of it. tested: the versions that were tested.

    Raises:
        UnsupportedError: names every hook point that is not there.
    """
    wrong = missing_hook_points(hook_points, package_root(engine))
    if wrong:
        expected = f"the hook points of {engine} {tested}"
        raise UnsupportedError(
            engine, expected, f"version {version} where\n  " + "\n  ".join(wrong)
        )


def package_root(package: str) -> Path:
    """The folder of an installed package, which is not imported.

    Raises:
        UnsupportedError: it is not there.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UnsupportedError(package, "an installed package", "none")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
