# SPDX-License-Identifier: Apache-2.0
"""Scripts for a GPU run whole over a stand-in for one (tests/fake_cuda), at small sizes."""

import csv
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import fake_cuda
import pytest
import torch

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


@pytest.mark.parametrize(
    ("words", "file", "arm"),
    [
        (["bench.ops.head"], "head.csv", "Triton packed"),
        (["bench.draft.step", "--model", "toy", "--k", "300", "--new", "16", "--rounds", "1",
          "--arms", "Triton packed,compiled"], "draft_timeline.csv", "dense, compiled"),
        (["bench.ops.gather"], "gather.csv", "gather_rows_ of 128 rows, bf16 to int8"),
        (["bench.ops.vocab"], "vocab.csv", "vocab_update_ of 300 tokens, all new"),
        (["bench.decoding.batches_head"], "batches_head.csv", ""),
        (["bench.decoding.batches", "--prompts", "2", "--new", "2"], "batches.csv", ""),
    ],
    ids=lambda value: value[0].split(".")[-1] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_benchmark(words: Sequence[str], file: str, arm: str, tmp_path: Path) -> None:
    quick = [] if "--rounds" in words else ["--quick"]
    rehearse("-m", *words, *quick, "--device", "cuda", "--out", tmp_path)
    assert not arm or arm in {row["arm"] for row in lines(tmp_path / file)}


def test_one_command_runs_and_packs_the_benchmarks(tmp_path: Path) -> None:
    out, packed = tmp_path / "out", tmp_path / "results.tar.gz"
    words = ("-m", "bench.run", "--quick", "--device", "cuda", "--parts", "vocab,draft_step,plots")
    told = rehearse(*words, "--out", out, "--pack", packed)
    assert told.count("| done |") == 3
    with tarfile.open(packed) as file:
        names = {Path(name).name for name in file.getnames()}
    assert names >= {"vocab.csv", "draft_step.csv", "draft.svg", "timeline.svg"}


def test_builds_are_compared(tmp_path: Path) -> None:
    library = ROOT / "microspec_kernels" / "libmicrospec.so"
    for name in ("default", "stream-order"):
        shutil.copy(library, tmp_path / f"{name}.so")
    rehearse(
        "-m", "bench.tuning.kernel_variants", "run", "--quick", "--repeats", "1",
        "--rounds", "1", "--libraries", tmp_path, "--out", tmp_path, "--only", "stream-order",
    )  # fmt: skip
    found = {row["variant"] for row in lines(tmp_path / "variants.csv")}
    assert found == {"default", "stream-order"}


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
        **{"draft-full": ("draft_step.csv", "draft_timeline.csv"), "engine": ("engine.csv",)},
        "l2": ("l2.csv",),
    }
    for stage, files in figures.items():
        assert all(lines(results / stage / name) for name in files)
