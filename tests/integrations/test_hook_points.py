# SPDX-License-Identifier: Apache-2.0
"""The check of hook points: what it finds in a package's source, and the plugin's errors."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from microspec_kernels.integrations.hooks import (
    HookPoint,
    UnsupportedError,
    check_hook_points,
    hook_points,
    missing_hook_points,
    package_root,
)

# This package cannot be imported: the check only reads its source.
SOURCE = """
raise RuntimeError("imported")
import absent_module

def plain(first, second=2): ...
def kinds(first, /, second, *rest, third, fourth=4, **others): ...
async def later(first): ...
@decorated(with_arguments=True)
def wrapped(first): ...
value = 3
alias = plain
from elsewhere import brought

if TYPE_CHECKING:
    def conditional(first): ...
try:
    import fast
    def attempted(first): ...
except ImportError:
    pass

class Base:
    def inherited(self, first): ...

class Draft(Base):
    def load(self, target): ...
    @torch.inference_mode()
    def propose(self, tokens, *, sampled): ...
    @staticmethod
    def static(tokens): ...
    @property
    def head(self): ...
    async def fetch(self): ...
    attribute = None
    class Inner:
        def deep(self, depth): ...

class Twice:
    def old(self): ...
class Twice:
    def new(self, added): ...

@overload
def several(a: int): ...
@overload
def several(b: str): ...
def several(c): ...
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    engine = tmp_path / "engine"
    (engine / "worker" / "gpu").mkdir(parents=True)
    (engine / "__init__.py").write_text("def version(): ...\n", encoding="utf-8")
    (engine / "worker" / "__init__.py").write_text("def start(rank): ...\n")
    (engine / "worker" / "draft.py").write_text(
        "# ein Entwürfchen 草稿\n" + SOURCE, encoding="utf-8"
    )
    yield engine
    hook_points.tree.cache_clear()


def problem(root: Path, name: str, *arguments: str, module: str = "engine.worker.draft") -> str:
    hook_point = HookPoint(module, name, arguments)
    found = missing_hook_points([hook_point], root)
    assert all(text.startswith(f"{hook_point}: ") for text in found)
    return "".join(found).removeprefix(f"{hook_point}: ")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("plain", ("first", "second")),
        ("plain", ("second",)),
        ("plain", ()),
        ("kinds", ("first", "second", "third", "fourth")),
        ("wrapped", ("first",)),
        ("Draft.load", ("self", "target")),
        ("Draft.propose", ("self", "tokens", "sampled")),
        ("Draft.static", ("tokens",)),
        ("Draft.Inner.deep", ("self", "depth")),
        ("Twice.new", ("self", "added")),
        ("several", ("c",)),
    ],
)
def test_what_is_there(root: Path, name: str, arguments: tuple[str, ...]) -> None:
    assert problem(root, name, *arguments) == ""


def test_packages_are_modules_too(root: Path) -> None:
    assert problem(root, "version", module="engine") == ""
    assert problem(root, "start", "rank", module="engine.worker") == ""


@pytest.mark.parametrize("module", ["engine.worker.drafts", "engine.draft", "engine.worker.gpu"])
def test_a_module_that_is_not_there(root: Path, module: str) -> None:
    assert problem(root, "plain", module=module) == "no such module"


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("plane", "plane"),
        ("Drafts.load", "Drafts"),
        ("Draft.loads", "loads"),
        ("Draft.Outer.deep", "Outer"),
        ("load", "load"),
        # To replace a method, the plugin has to know the class that defines it.
        ("Draft.inherited", "inherited"),
        ("Twice.old", "old"),
        # These are not functions with arguments: the source does not show their value at run time.
        ("value", "value"),
        ("alias", "alias"),
        ("brought", "brought"),
        ("conditional", "conditional"),
        ("attempted", "attempted"),
        # Calls of these are not calls of a function.
        ("later", "later"),
        ("Draft.fetch", "fetch"),
        ("Draft.attribute", "attribute"),
    ],
)
def test_a_name_that_is_not_there(root: Path, name: str, absent: str) -> None:
    assert problem(root, name) == f"no {absent!r} there"


def test_a_class_is_not_a_function(root: Path) -> None:
    assert problem(root, "Draft") == "not a function"
    assert problem(root, "Draft.Inner") == "not a function"


def test_a_property_is_not_a_function(root: Path) -> None:
    assert problem(root, "Draft.head", "self") == "a property, not a function"


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("plain", ("third",), "has no third among first, second"),
        ("plain", ("first", "a", "b"), "has no a, b among first, second"),
        ("kinds", ("rest",), "has no rest among first, second, third, fourth"),
        ("kinds", ("others",), "has no others among first, second, third, fourth"),
        ("Draft.static", ("self", "tokens"), "has no self among tokens"),
        ("several", ("a",), "has no a among c"),
    ],
)
def test_an_argument_that_is_not_there(
    root: Path, name: str, arguments: tuple[str, ...], told: str
) -> None:
    assert problem(root, name, *arguments) == told


def test_every_problem_is_told_and_nothing_else(root: Path) -> None:
    draft = "engine.worker.draft"
    good, *bad = (
        HookPoint(draft, "plain", ("first",)),
        HookPoint(draft, "plain", ("third",)),
        HookPoint("engine.gone", "plain", ()),
    )
    assert missing_hook_points([bad[0], good, bad[1]], root) == [
        f"{draft}:plain(third): has no third among first, second",
        "engine.gone:plain(): no such module",
    ]


def test_a_source_that_this_python_cannot_read(root: Path) -> None:
    (root / "worker" / "draft.py").write_text("def plain(first) ->\n")
    assert problem(root, "plain", "first") == "not readable as Python, line 1"


def test_refused_names_engine_version_and_every_hook_point(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(root.parent))
    draft = "engine.worker.draft"
    check_hook_points("engine", "9.1", "8.x", [HookPoint(draft, "plain", ("first",))])
    wanted = [HookPoint(draft, "plain", ("third",)), HookPoint(draft, "plane", ())]
    with pytest.raises(UnsupportedError) as refused:
        check_hook_points("engine", "9.1", "8.x", wanted)
    assert str(refused.value) == (
        "microspec: engine: expected the hook points of engine 8.x, got version 9.1 where\n"
        f"  {draft}:plain(third): has no third among first, second\n"
        f"  {draft}:plane(): no 'plane' there"
    )
    assert "engine" not in sys.modules


def test_a_package_that_is_not_installed() -> None:
    for name in ("no_such_engine", "this"):  # a module is no package
        message = f"microspec: {name}: expected an installed package, got none"
        with pytest.raises(UnsupportedError, match=re.escape(message)):
            package_root(name)
    assert "this" not in sys.modules
    assert (
        package_root("microspec_kernels") / "integrations" / "hooks" / "hook_points.py"
    ).is_file()


def test_refused_ends_the_process_with_its_message() -> None:
    """It also does so if an engine catches every Exception of its plugins."""
    program = """
from microspec_kernels.integrations.hooks import UnsupportedError
try:
    raise UnsupportedError("vllm", "version 0.32", "0.99")
except Exception:
    pass
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "microspec: vllm: expected version 0.32, got 0.99"
    assert done.stdout == ""
