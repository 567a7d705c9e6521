# SPDX-License-Identifier: Apache-2.0
"""Each requirement has a lower bound, and `make test-oldest` runs with all of them."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NAME = r"([A-Za-z0-9._-]+?)(?:\[[\w,-]+\])?"


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    if sys.version_info < (3, 11):
        pytest.skip("needs tomllib, which Python has from 3.11 on")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(pyproject: dict[str, Any]) -> list[str]:
    """Return all requirements, except the package's own extras and those that pin a version."""
    extras = pyproject["project"]["optional-dependencies"]
    lists = [
        pyproject["build-system"]["requires"],
        pyproject["project"]["dependencies"],
        *(extras[name] for name in extras if name not in ("lint", "release")),
    ]
    package = pyproject["project"]["name"]
    return [line for lines in lists for line in lines if not line.startswith(package)]


def padded(version: str) -> tuple[int, ...]:
    parts = [int(part) for part in version.split(".")]
    return (*parts, *[0] * (4 - len(parts)))


def test_the_oldest_are_the_lower_bounds(pyproject: dict[str, Any]) -> None:
    bounds: dict[str, set[tuple[int, ...]]] = {}
    for line in requirements(pyproject):
        match = re.fullmatch(NAME + r">=([\d.]+)", line)
        assert match is not None, f"{line!r}: expected NAME>=VERSION and no upper bound"
        bounds.setdefault(match[1], set()).add(padded(match[2]))
    pinned = {}
    for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            pinned[name] = {padded(version)}
    assert pinned == bounds


def test_the_oldest_python_is_the_lower_bound(pyproject: dict[str, Any]) -> None:
    (oldest,) = re.findall(r"^OLDEST_PYTHON \?= python(.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert pyproject["project"]["requires-python"] == f">={oldest}"
    assert pyproject["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
