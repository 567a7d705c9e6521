# SPDX-License-Identifier: Apache-2.0
"""The contents of the wheel, which serves every Python, and of the source archive."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("wheel")  # one process builds it

ROOT = Path(__file__).parents[1]
BIN = str(Path(sys.executable).parent)
ENVIRONMENT = os.environ | {"PATH": BIN + os.pathsep + os.environ.get("PATH", "")}

SDIST = """
import sys
from setuptools.build_meta import build_sdist
build_sdist(sys.argv[1])
"""


def run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def sources() -> set[str]:
    """Return the package's Python files and stubs in this checkout, and their installed paths."""
    files = [*ROOT.glob("microspec_kernels/**/*.py"), *ROOT.glob("microspec_kernels/**/*.pyi")]
    package = {str(path.relative_to(ROOT)) for path in files}
    package.add("microspec_plugins.py")
    kernels = {str(path.relative_to(ROOT)) for path in ROOT.glob("triton_kernels/*.py")}
    assert len(kernels) > 4
    return package | {f"microspec_kernels/{path}" for path in kernels}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel in the build folder of `make build`, so that nothing is compiled again."""
    if shutil.which("cmake", path=ENVIRONMENT["PATH"]) is None:
        pytest.skip("needs cmake")
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder]
    run("-m", "pip", "wheel", *options, ".", cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_names_the_platform_but_no_python(wheel):
    assert re.fullmatch(r"microspec_kernels-[\w.]+-py3-none-(linux|manylinux)\w+\.whl", wheel.name)


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert package == sources() | {
        "microspec_kernels/py.typed",
        "microspec_kernels/libmicrospec.so",
    }
    endings = {name.split(".dist-info/")[1] for name in names - package}
    assert {"METADATA", "licenses/LICENSE", "entry_points.txt"} <= endings


def test_wheel_entry_points_and_requirements(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        commands = ConfigParser()
        commands.read_string(archive.read(points).decode())
        metadata = archive.read(points.replace("entry_points.txt", "METADATA")).decode()
    assert {group: dict(commands[group]) for group in commands.sections()} == {
        "console_scripts": {"microspec": "microspec_kernels.cli:main"},
        "vllm.general_plugins": {"microspec": "microspec_plugins:vllm"},
        "sglang.srt.plugins": {"microspec": "microspec_plugins:sglang"},
    }
    required = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    assert [line for line in required if "extra ==" not in line] == ["torch>=2.10"]
    assert "Requires-Python: >=3.10" in metadata


def test_source_archive_holds_what_a_build_needs(tmp_path):
    # Build in a copy: setuptools writes notes beside pyproject.toml and keeps the files they list.
    copy = tmp_path / "copy"
    skip = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=skip)
    run("-c", SDIST, tmp_path, cwd=copy)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    compiled = {str(path.relative_to(copy)) for path in copy.glob("csrc/**/*") if path.is_file()}
    assert len(compiled) > 10
    fixed = {"CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}
    assert compiled | sources() | fixed <= names
    assert not [name for name in names if name.endswith(".so") or name.startswith("tests/")]


def test_an_editable_build_that_fails_says_so(tmp_path):
    """setuptools alone would report success, with no library installed."""
    copy = tmp_path / "copy"
    skip = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT, copy, ignore=skip)
    (copy / "CMakeLists.txt").write_text("message(FATAL_ERROR broken)")
    with pytest.raises(AssertionError, match=r"exit status 1: \S*cmake"):
        run("-c", SDIST.replace("sdist", "editable"), tmp_path, cwd=copy)
