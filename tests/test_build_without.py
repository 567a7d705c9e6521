# SPDX-License-Identifier: Apache-2.0
"""A build without isolation and with a missing part: pip shows one line that names the part."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("setuptools", "torch")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "copy"
    skip = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT, folder, ignore=skip)
    return folder


def environment_without(lacking: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """Make a Python that sees setuptools, torch and cmake, except one of them."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (folder / "seen").mkdir()
    packages = Path(sysconfig.get_path("purelib"))
    for name in PARTS:
        if name != lacking:
            for path in [packages / name, *packages.glob(f"{name}-*.dist-info")]:
                (folder / "seen" / path.name).symlink_to(path)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "seen.pth").write_text(f"{folder / 'seen'}\n")
    (folder / "bin").mkdir()
    if lacking != "cmake":
        program = folder / "bin" / "cmake"
        program.write_text("#!/bin/sh\necho cmake version 3.30.1\n")
        program.chmod(0o755)
    return folder / "env/bin/python", {**os.environ, "PATH": str(folder / "bin")}


@pytest.mark.parametrize("editable", [False, True], ids=["plain", "editable"])
@pytest.mark.parametrize("lacking", ["setuptools", "cmake", "torch"])
def test_one_line_says_what_is_missing(
    copy: Path, tmp_path: Path, lacking: str, editable: bool
) -> None:
    python, environment = environment_without(lacking, tmp_path)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index"]
    command += [
        "--no-deps",
        "--no-build-isolation",
        *(["--editable"] if editable else []),
        str(copy),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert re.search(r"\[1 lines? of output\]", output), output
    (line,) = re.findall(r"microspec-kernels: the build needs .*", output)
    (needed,) = re.findall(r"needs (\w+) >= [\d.]+ \(found none\): `pip install", line)
    assert needed == lacking


def test_a_version_that_is_too_old_is_named(tmp_path: Path) -> None:
    python, environment = environment_without("setuptools", tmp_path)
    old = tmp_path / "seen" / "setuptools-65.5.0.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: setuptools\nVersion: 65.5.0\n")
    (tmp_path / "seen" / "setuptools").mkdir()
    done = subprocess.run(
        [python, ROOT / "release" / "backend.py"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "microspec-kernels: the build needs setuptools >= 77.0.1 (found 65.5.0): `pip install"
    )
    assert done.stderr.count("\n") == 1
