# SPDX-License-Identifier: Apache-2.0
"""The sources: each names its licence. In csrc/, no folder includes from a higher one."""

import re
from pathlib import Path

import pytest
import torch

from microspec_kernels import _checks, sparse_head

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
FILES = sorted(path for path in CSRC.rglob("*") if path.is_file())
# From bottom to top. A folder includes from itself and lower floors; csrc/ includes from all.
FLOORS = [["common"], ["cuda"], ["binding"], ["gather", "head", "tree", "vocab"], ["."]]
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}


FOLDERS = [
    "bench", "csrc", "docs", "examples", "microspec_kernels", "release", "tests", "triton_kernels",
]  # fmt: skip
SUFFIXES = {".c", ".cmake", ".cpp", ".cu", ".cuh", ".h", ".inl", ".map", ".py", ".pyi", ".sh"}
SOURCES = sorted(
    path
    for places in (ROOT.glob("*"), *((ROOT / folder).rglob("*") for folder in FOLDERS))
    for path in places
    if path.suffix in SUFFIXES or path.name == "CMakeLists.txt"
)


def folder_of(path: Path) -> str:
    parts = path.relative_to(CSRC).parts
    return parts[0] if len(parts) > 1 else "."


def included(path: Path) -> list[Path]:
    """Return the files of csrc that a file includes, by a path from its folder or from csrc."""
    found = []
    for name in re.findall(r'^#include "(.*)"', path.read_text(), re.MULTILINE):
        places = [place for place in (path.parent / name, CSRC / name) if place.is_file()]
        assert places, f"{path} includes {name}, which is nowhere"
        found.append(places[0].resolve())
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_names_the_licence_first(path: Path) -> None:
    lines = path.read_text().split("\n")
    first = lines[1] if lines[0].startswith("#!") else lines[0]
    assert re.fullmatch(r"(//|#) SPDX-License-Identifier: Apache-2\.0", first), first


def test_no_include_points_upwards() -> None:
    """The emulation has no floor, because it replaces nvcc, CUDA and the GPU."""
    arrows = {
        (folder_of(path), folder_of(other))
        for path in FILES
        if folder_of(path) != "emulation"
        for other in included(path)
    }
    assert {("gather", "binding"), ("binding", "cuda"), ("cuda", "common")} <= arrows
    wrong = {
        (user, used)
        for user, used in arrows
        if user != used and used != "emulation" and FLOOR[user] <= FLOOR[used]
    }
    assert wrong == set()


def constant(header: str, name: str) -> str:
    found = re.findall(
        rf"^constexpr \w+ {name} = (.*);$", (CSRC / header).read_text(), re.MULTILINE
    )
    assert len(found) == 1, f"{header}: {name}"
    return found[0]


def test_constants_equal_those_of_python() -> None:
    assert constant("head/args.h", "kMaxTopK") == str(_checks.MAX_TOP_K)
    assert f"1 to {_checks.MAX_TOP_K}." in (sparse_head.__doc__ or "")
    assert constant("vocab/args.h", "kEmptyStamp") == str(_checks.EMPTY_STAMP)
    assert constant("vocab/args.h", "kPinnedStamp") == "std::numeric_limits<int64_t>::max()"
    assert torch.iinfo(torch.int64).max == _checks.PINNED_STAMP
