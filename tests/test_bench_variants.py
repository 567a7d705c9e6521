# SPDX-License-Identifier: Apache-2.0
"""Variants of the CUDA head: each is a different program, and the right one wins."""

import argparse
import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.draft.graph import DraftShape
from bench.draft.heads import ObservedTokens
from bench.harness.choose_build import VARIABLE, environment
from bench.ops import compare_builds, gather
from bench.tuning import kernel_variants as variants
from bench.tuning.indexed_or_packed import CALLS, compare_modes
from bench.tuning.pick_fastest import MARGIN, pick_fastest
from microspec_kernels import _library

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
OVERRIDABLE = re.compile(r"#ifndef (MICROSPEC_\w+)\n#define \1 (\w+)\n#endif")


def overridable() -> dict[str, str]:
    """Return the constants that a build may override, and their defaults."""
    texts = [path.read_text() for path in CSRC.rglob("*") if path.suffix in (".h", ".cuh", ".cu")]
    return {name: value for text in texts for name, value in OVERRIDABLE.findall(text)}


@pytest.fixture(scope="module")
def empty_headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write empty versions of all system headers that the sources include."""
    folder = tmp_path_factory.mktemp("headers")
    for path in CSRC.rglob("*"):
        if path.suffix in (".h", ".cuh", ".cu"):
            for name in re.findall(r"#include <(.*?)>", path.read_text()):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
    return folder


def program(headers: Path, definition: str = "") -> str:
    """Return the CUDA sources of the head and of the launches after the preprocessor."""
    compiler = shutil.which("g++") or pytest.skip("needs g++")
    command = [compiler, "-E", "-P", "-x", "c++", "-nostdinc", "-nostdinc++"]
    command += [f"-I{CSRC}", f"-I{headers}", *([f"-D{definition}"] if definition else [])]
    sources = map(str, sorted(CSRC.glob("head/cuda/*.cu")))
    return subprocess.run([*command, *sources], check=True, capture_output=True, text=True).stdout


def test_every_variant_is_another_program(empty_headers: Path) -> None:
    built = [v for v in variants.VARIANTS if v.built]
    programs = {v.name: program(empty_headers, v.definition) for v in built}
    assert "project_mma_kernel" in programs["default"]
    assert len(set(programs.values())) == len(built)
    assert len({v.name for v in variants.VARIANTS}) == len(variants.VARIANTS), "a name twice"


def test_every_setting_is_read_by_the_library() -> None:
    sources = "".join(p.read_text() for p in (*CSRC.rglob("*.cu"), *CSRC.rglob("*.cpp")))
    read = set(re.findall(r'getenv\("(\w+)"\)', sources))
    set_by_variants = {name for v in variants.VARIANTS for name, _ in v.settings}
    assert set_by_variants and set_by_variants <= read


def test_a_definition_with_the_default_changes_nothing(empty_headers: Path) -> None:
    default = program(empty_headers)
    for name, value in overridable().items():
        assert program(empty_headers, f"{name}={value}") == default, name


def test_what_can_be_overridden_is_compared() -> None:
    """No option may exist that no benchmark measures."""
    compared = {v.definition.partition("=")[0] for v in variants.VARIANTS} - {""}
    assert compared == set(overridable())
    assert set(compare_builds.ROWS.split(",")) == {str(m) for m in variants.DEFAULT.num_tokens}
    assert all(set(v.num_tokens) <= set(variants.DEFAULT.num_tokens) for v in variants.VARIANTS)


def line(p50: float, m: int = 10, situation: str = "cold", arm: str = "packed") -> dict[str, Any]:
    return {"M": m, "situation": situation, "arm": arm, "p50_us": p50, "floor_us": 8.0}


def won(table: list[dict[str, Any]], m: int = 10) -> str:
    (name,) = [row["variant"] for row in table if row["winner"] and row["M"] == m]
    return name


def test_the_fastest_by_its_best_process_wins() -> None:
    runs = {
        "default": [[line(10.0)], [line(10.1)]],
        "a": [[line(12.0)], [line(9.0)]],
        "b": [[line(9.5)], [line(9.4)]],
    }
    table = pick_fastest(runs, {"a": "why?"})
    assert won(table) == "a"
    (row,) = [row for row in table if row["variant"] == "a"]
    assert (row["p50_us"], row["over_default"], row["question"]) == (9.0, 0.9, "why?")


def test_the_default_stays_within_the_margin_and_its_own_spread() -> None:
    barely = 10 * (1 - MARGIN)
    assert (
        won(pick_fastest({"default": [[line(10.0)]], "a": [[line(barely + 0.01)]]}, {}))
        == "default"
    )
    assert won(pick_fastest({"default": [[line(10.0)]], "a": [[line(barely - 0.01)]]}, {})) == "a"
    unsteady = [[line(10.0)], [line(11.0)]]
    assert won(pick_fastest({"default": unsteady, "a": [[line(9.1)]]}, {})) == "default"
    assert won(pick_fastest({"default": unsteady, "a": [[line(8.9)]]}, {})) == "a"


def test_a_variant_has_winners_only_where_it_was_measured() -> None:
    runs = {"default": [[line(10.0), line(20.0, m=60)]], "a": [[line(5.0, m=60), line(1.0, m=4)]]}
    table = pick_fastest(runs, {})
    assert won(table, 10) == "default"
    assert won(table, 60) == "a"
    assert not [row for row in table if row["M"] == 4], "nothing to compare it with"


HEAD = {"model": "Llama-3.1-8B", "K": 3072, "floor_us": 8}


def kept_figures(folder: Path, packed: float, gather: float) -> None:
    head = [
        {**HEAD, "situation": situation, "arm": arm, "M": m, "p50_us": factor * took}
        for situation, factor in (("cold", 1), ("in situ", 2))
        for arm, took in (("sparse_head indexed", 10.0), ("sparse_head packed", packed))
        for m in (1, 10)
    ]
    copies = [{"arm": "gather_rows_ of 128 rows, bf16 to bf16", "p50_us": gather}]
    for name, rows in (("head", head), ("gather", copies)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def test_packed_has_to_win_with_its_gather(tmp_path: Path) -> None:
    """With six calls per draft, indexed takes 60 cold; packed takes 54 plus the gather."""
    kept_figures(tmp_path, packed=9.0, gather=4.0)
    table = {(row["situation"], row["variant"]): row for row in compare_modes(tmp_path)}
    assert table["cold", "indexed"]["p50_us"] == 60
    assert table["cold", "packed, gather counted"]["p50_us"] == 58
    assert table["cold", "packed, gather hidden"]["p50_us"] == 54
    assert table["in situ", "packed, gather counted"]["p50_us"] == 112
    assert [key for key, row in table.items() if row["winner"]] == [
        ("cold", "packed, gather counted"),
        ("in situ", "packed, gather counted"),
    ]
    kept_figures(tmp_path, packed=9.0, gather=7.0)
    table = {(row["situation"], row["variant"]): row for row in compare_modes(tmp_path)}
    assert table["cold", "indexed"]["winner"] and table["cold", "indexed"]["floor_us"] == 48


def test_modes_follow_the_benchmarks() -> None:
    assert sum(CALLS.values()) == DraftShape().depth
    assert ObservedTokens().new in gather.CHANGED_ON_GPU


def test_modes_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no head.csv.*bench.run"):
        compare_modes(tmp_path)
    kept_figures(tmp_path, 9.0, 4.0)
    (tmp_path / "gather.csv").write_text("arm,p50_us\ncopy_,1\n")
    with pytest.raises(ValueError, match=r"no figure.*gather_rows_ of 128"):
        compare_modes(tmp_path)


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    for name in ("default", "splits-2", "cp-async"):
        (tmp_path / f"{name}.so").touch()
    return tmp_path


def test_a_run_alternates_and_goes_on_where_one_fails(
    libraries: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []

    def child(
        args: argparse.Namespace, path: Path, timeout: float, settings: dict[str, str]
    ) -> list[dict[str, Any]]:
        called.append(" ".join([path.stem, *settings]))
        if path.stem == "cp-async":
            raise subprocess.CalledProcessError(7, "bench.ops.compare_builds")
        took = 9.0 if path.stem == "splits-2" else 10.0
        return [line(took, int(m), s) for m in args.num_tokens.split(",") for s in ("cold", "warm")]

    monkeypatch.setattr(compare_builds, "measure_build", child)
    out = libraries / "out"
    words = ["run", "--libraries", libraries, "--out", out, "--figures", out]
    assert variants.main([str(word) for word in words]) == 1, "one has failed"
    order = ["default", "default MICROSPEC_DEPENDENT_LAUNCH", "splits-2"]
    assert called == [*order, "cp-async", *order]
    told = capsys.readouterr()
    assert "FAILED: cp-async" in told.out and "run python -m bench.run first" in told.err
    rows = list(csv.DictReader((out / "variants.csv").open()))
    assert {row["situation"] for row in rows} == {"cold"}
    won = {row["M"]: row["variant"] for row in rows if row["winner"]}
    default = dict.fromkeys(["1", "4", "32", "60"], "default")
    assert won == {**default, "10": "splits-2", "16": "splits-2"}


def test_the_child_takes_what_it_is_given(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """compare_builds accepts the arguments that a sweep passes."""
    commands: list[list[str]] = []
    builds: list[str] = []
    stream_order: list[str | None] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        builds.append(options["env"][VARIABLE])
        stream_order.append(options["env"].get("MICROSPEC_DEPENDENT_LAUNCH"))
        return subprocess.CompletedProcess(command, 0, 'log\n{"head": []}\n')

    monkeypatch.setattr(subprocess, "run", run)
    there = variants.find_libraries(libraries, variants.VARIANTS)
    assert next(iter(there)) == variants.DEFAULT and len(there) == 4
    sweep = variants.Sweep(there, rounds=5, quick=True)
    for variant in list(there)[:2]:
        sweep.measure(variant)
    assert stream_order == [None, "0"]
    monkeypatch.setattr(sys, "argv", ["compare_builds", *commands[0][3:]])
    args = compare_builds.parsed()
    assert (args.parts, args.only) == (["head"], "sparse_head")
    assert args.num_tokens == compare_builds.ROWS
    assert (args.rounds, args.quick, args.json) == (5, True, True)
    assert builds == [str(libraries / "default.so")] * 2


def test_builds_are_compared_by_their_best_processes() -> None:
    a, b = Path("a.so"), Path("b.so")
    runs = {a: [[line(10.0), line(4.0, m=1)], [line(8.0)]], b: [[line(4.0), line(5.0, m=1)]]}
    ten, one = compare_builds.compare(runs)
    assert (ten["library 1 us"], ten["library 2 us"], ten["2 over 1"]) == (8.0, 4.0, 0.5)
    assert (one["M"], one["2 over 1"], one["floor_us"]) == (1, 1.25, 8.0)


def test_a_process_loads_the_build_that_it_is_given(tmp_path: Path) -> None:
    """A program of bench imports the package in many places, but loads no other library."""
    library = Path(shutil.copy(_library.PATH, tmp_path / "other.so"))
    program = "from bench.ops import compare_builds; from microspec_kernels import _library\n"
    done = subprocess.run(
        [sys.executable, "-c", program + "print(_library.PATH)"],
        cwd=ROOT, env=environment(library), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(library)


def test_refusals(libraries: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (libraries / "default.so").unlink()
    words = ["run", "--libraries", str(libraries), "--out", str(libraries)]
    assert variants.main(words) == 2
    assert "default.so" in capsys.readouterr().err
    for words in (["dance"], ["build", "--only", "dance"]):
        with pytest.raises(SystemExit):
            variants.main(words)
