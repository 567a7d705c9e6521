# SPDX-License-Identifier: Apache-2.0
"""What a plugin relies on in an engine's source besides the names and arguments of its hook points.

A name can stay while its meaning moves: a method is overridden elsewhere, its caller calls another
one, or the steps of a pass change their order. These facts are read in the syntax tree, too.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .hook_points import find, tree


@dataclass(frozen=True)
class CallOrder:
    """A function calls others, in this order in its source.

    Attributes:
        module: "package.module".
        name: "function" or "Class.method".
        calls: each call as it is written, for example "self.model.forward".
    """

    module: str
    name: str
    calls: tuple[str, ...]

    def problem(self, root: Path) -> str | None:
        """Return the first call that is missing after the ones before it; None if all are there."""
        function = find(root, self.module, self.name)
        if isinstance(function, str):
            return function
        made = sorted(
            (node.func.end_lineno or 0, node.func.end_col_offset or 0, ast.unparse(node.func))
            for node in ast.walk(function)
            if isinstance(node, ast.Call)
        )
        names = iter([name for *_, name in made])
        before = ""
        for call in self.calls:
            if call not in names:  # consumes the calls up to this one
                return f"no call of {call}{before}"
            before = f" after {call}"
        return None

    def __str__(self) -> str:
        return f"{self.module}:{self.name} calls {', '.join(self.calls)}"


@dataclass(frozen=True)
class Attributes:
    """A class has attributes.

    Attributes:
        module: "package.module".
        name: the class, defined in this module unconditionally.
        attributes: names that its body defines or its methods assign to `self`.
    """

    module: str
    name: str
    attributes: tuple[str, ...]

    def problem(self, root: Path) -> str | None:
        """Return the missing attributes; None if the class has all of them."""
        owner = find(root, self.module, self.name)
        if isinstance(owner, str):
            return owner
        if not isinstance(owner, ast.ClassDef):
            return "not a class"
        names = set(_attributes(owner))
        absent = [name for name in self.attributes if name not in names]
        return f"has no {', '.join(absent)}" if absent else None

    def __str__(self) -> str:
        return f"{self.module}:{self.name} has {', '.join(self.attributes)}"


def _attributes(owner: ast.ClassDef) -> Iterator[str]:
    for node in owner.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
    for each in ast.walk(owner):
        if (
            isinstance(each, ast.Attribute)
            and isinstance(each.ctx, ast.Store)
            and isinstance(each.value, ast.Name)
            and each.value.id == "self"
        ):
            yield each.attr


@dataclass(frozen=True)
class Definitions:
    """Only these classes define a method, in all modules of a folder.

    The plugin replaces the method in each of these classes. An override in another class would run
    instead, unnoticed.

    Attributes:
        module: "package.folder".
        method: name of the method.
        classes: names of the classes that define it.
    """

    module: str
    method: str
    classes: tuple[str, ...]

    def problem(self, root: Path) -> str | None:
        """Return the classes that define the method in addition or no longer; None if none do."""
        folder = root.joinpath(*self.module.split(".")[1:])
        if not folder.is_dir():
            return "no such module"
        written = f"def {self.method}("
        paths = [
            path for path in folder.rglob("*.py") if written in path.read_text(encoding="utf-8")
        ]
        found = {
            node.name
            for path in paths
            for node in ast.walk(tree(path))
            if isinstance(node, ast.ClassDef)
            and any(isinstance(e, ast.FunctionDef) and e.name == self.method for e in node.body)
        }
        extra, absent = found.difference(self.classes), set(self.classes).difference(found)
        told = [f"also defined by {', '.join(sorted(extra))}"] if extra else []
        told += [f"not defined by {', '.join(sorted(absent))}"] if absent else []
        return "; ".join(told) or None

    def __str__(self) -> str:
        return f"{self.module}: {self.method} defined by {', '.join(self.classes)} only"
