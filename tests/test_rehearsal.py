# SPDX-License-Identifier: Apache-2.0
"""Scripts for a GPU run whole over a stand-in for one (tests/fake_cuda), at small sizes."""

import csv
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import fake_cuda
import pytest
import torch
from gpu import quarter_hour, report, run

ROOT = Path(__file__).resolve().parents[1]
DEVICE = "nvidia-h200"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU: make test-gpu"),
]

# Stands in for compute-sanitizer: it checks the options, runs the program and reports no error.
SANITIZER = """#!{python}
import subprocess, sys
words, options = sys.argv[1:], {{}}
while words[0].startswith("--"):
    options[words[0]] = words[1]
    words = words[2:]
tool = options.pop("--tool")
expected = {{"--kernel-name", "--error-exitcode", "--report-api-errors", "--print-limit"}}
assert tool in ("memcheck", "racecheck"), tool
assert set(options) == expected | ({{"--padding"}} if tool == "memcheck" else set()), options
code = subprocess.run(words).returncode
print("========= ERROR SUMMARY: 0 errors")
sys.exit(code)
"""


@pytest.fixture
def sanitizer(tmp_path: Path) -> Path:
    """Return a folder with a compute-sanitizer."""
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text(SANITIZER.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program.parent


def rehearse(*words: str | Path, folder: Path | None = None, root: Path = ROOT) -> str:
    """Run a Python program on the pretended device, and return its output.

    Args:
        folder: of further programs.
        root: of the checkout.
    """
    environment = {
        **fake_cuda.environment(root, root / "tests"),
        # Threads that spin would take the time of the other test processes.
        **{"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MICROSPEC_COMMIT": "rehearsal"},
        **{"PYTEST_ADDOPTS": "-p fake_cuda.small_sizes -p no:cacheprovider"},
        "PATH": os.pathsep.join(filter(None, (str(folder or ""), os.environ["PATH"]))),
    }
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def lines(path: Path) -> list[dict[str, str]]:
    """Read a CSV file; it has to name the pretended device."""
    found = list(csv.DictReader(path.open()))
    assert found and {row["device"] for row in found} == {"NVIDIA H200"}
    return found


TRITON_TOO = ("--model", "toy", "--k", "300", "--new", "16", "--rounds", "1")
SMALL_TREE = ("--new", "4", "--depth", "2", "--tree-width", "2", "--tree-size", "3")


@pytest.mark.parametrize(
    ("module", "words", "file", "arm"),
    [
        ("ops.head", ["--quick"], "head.csv", ("arm", "Triton packed")),
        (
            "draft.step",
            [*TRITON_TOO, "--arms", "Triton packed,compiled"],
            "draft_timeline.csv",
            ("arm", "dense, compiled"),
        ),
        (
            "decoding.pair",
            ["--quick", *SMALL_TREE],
            "e2e-depth2-top2-tree3.csv",
            ("head", "sparse"),
        ),
        ("decoding.batches_head", ["--quick"], "batches_head.csv", ("vocabulary", "shared")),
    ],
)
def test_a_benchmark(
    module: str, words: list[str], file: str, arm: tuple[str, str], tmp_path: Path
) -> None:
    rehearse("-m", f"bench.{module}", *words, "--device", "cuda", "--out", tmp_path)
    assert arm[1] in {row[arm[0]] for row in lines(tmp_path / file)}


def test_one_command_runs_and_packs_benchmarks(tmp_path: Path) -> None:
    out, packed = tmp_path / "out", tmp_path / "results.tar.gz"
    words = ("-m", "bench.run", "--quick", "--device", "cuda", "--parts", "vocab,gather,plots")
    told = rehearse(*words, "--out", out, "--pack", packed)
    assert told.count("| done |") == 3
    with tarfile.open(packed) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    found = {path.name: lines(path) for path in (tmp_path / "unpacked" / "out").glob("*.csv")}
    assert {row["arm"] for row in found["vocab.csv"]} == {
        f"vocab_update_ of 300 tokens, all {kind}" for kind in ("new", "active")
    }
    assert "gather_rows_ of 128 rows, bf16 to int8" in {row["arm"] for row in found["gather.csv"]}


def test_the_files_that_the_quarter_of_an_hour_leaves_out() -> None:
    told = rehearse("-m", "pytest", "tests/gpu/test_offsets.py", "tests/gpu/test_launch_limits.py")
    assert " passed" in told and "skipped" not in told


def test_the_quarter_hours_commands_have_their_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a full run, which no rehearsal runs."""
    commands: list[list[str]] = []

    def noted(command: list[str], log: Path, seconds: float) -> report.Results:
        commands.append(command)
        return {"passed": True}

    monkeypatch.setattr(run, "run_logged", noted)
    # It asks an installed compute-sanitizer for results; test_gpu_report has its commands.
    monkeypatch.setattr(run, "run_sanitizer", lambda *a, **k: {"passed": True})
    for stage in quarter_hour.STAGES.values():
        stage.run(tmp_path, 60.0, False)
    for words in commands:
        files = [word for word in words if word.endswith(".py")]
        assert all(Path(file).is_file() for file in files), words
        program = words[1 : 3 if words[1] == "-m" else 2]
        if "pytest" not in program:  # its options are those of a quick run, too
            text = rehearse(*program, "--help")
            options = {
                word.partition("=")[0]
                for word in words[1 + len(program) :]
                if word.startswith("--")
            }
            known = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", re.sub(r"[\[\]]", " ", text)))
            assert options - known == set(), program
    assert len(commands) == len(quarter_hour.STAGES) - 2, "all but the sanitizers' are looked at"


def test_the_quarter_hour(sanitizer: Path, tmp_path: Path) -> None:
    """Every stage passes in a bare copy, and two files hold all results."""
    copy, out = tmp_path / "copy", tmp_path / "out"
    for name in ("bench", "microspec_kernels", "tests", "csrc"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("results"))
    for name in ("pyproject.toml", "examples", "triton_kernels"):
        (copy / name).symlink_to(ROOT / name)
    script = copy / "tests" / "gpu" / "quarter_hour.py"
    told = rehearse(script, "--quick", "--out", out, folder=sanitizer, root=copy)
    kept = out / f"{DEVICE}-quarter-hour"
    assert {path.name for path in out.iterdir()} == {f"{kept.name}.md", f"{kept.name}.tar.gz"}
    assert kept.with_suffix(".md").read_text() in told
    with tarfile.open(kept.with_suffix(".tar.gz")) as file:
        file.extractall(tmp_path, filter="data")
    results = tmp_path / DEVICE / "quarter-hour"
    found = json.loads((results / "results.json").read_text())
    assert found["environment"]["commit"] == "rehearsal"
    assert {name for name, part in found["parts"].items() if not part["passed"]} == set()
    figures = {
        **{"micro": ("head.csv",), "draft": ("draft_step.csv",), "in-situ": ("head.csv",)},
        **{
            "draft-full": ("draft_step.csv", "draft_timeline.csv"),
            "engine": ("engine.csv", "engine_timeline.csv"),
        },
        "l2": ("l2.csv",),
        "e2e": ("e2e_shapes.csv",),
    }
    for stage, files in figures.items():
        assert all(lines(results / stage / name) for name in files)
