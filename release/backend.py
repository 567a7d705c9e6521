# SPDX-License-Identifier: Apache-2.0
"""setuptools' build backend, behind a check that a build without isolation has what it needs.

Such a build takes what the environment has. What is missing ends it here with one line, not in
setuptools or CMake with many.
"""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

PYPROJECT = (Path(__file__).parents[1] / "pyproject.toml").read_text()
# Python 3.10 has no tomllib; the list is one line.
REQUIRES = ast.literal_eval(re.findall(r"^requires = (\[.*\])$", PYPROJECT, re.MULTILINE)[0])
OPTIONAL = "ninja"  # without it CMake writes makefiles


def version_of(name: str) -> str | None:
    """The version that a build would find; None if it would find none."""
    if name == "cmake":
        program = shutil.which("cmake")
        if program is None:
            return None
        answer = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
        found = re.search(r"version (\S+)", answer)
        return found[1] if found else None
    if importlib.util.find_spec(name) is None:
        return None
    return importlib.metadata.version(name)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def missing() -> list[str]:
    lines = []
    for requirement in REQUIRES:
        name, wanted = requirement.split(">=")
        if name == OPTIONAL:
            continue
        version = version_of(name)
        if numbers(version or "") < numbers(wanted):
            lines.append(f"{name} >= {wanted} (found {version or 'none'})")
    return lines


# cmake and ninja may lie beside a Python that was called by its path.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])

if lacking := missing():
    sys.exit(
        f"microspec-kernels: the build needs {', '.join(lacking)}: "
        f"`pip install {shlex.join(REQUIRES)}`, then `pip install --no-build-isolation .`"
    )

from setuptools.build_meta import *  # noqa: E402, F403
