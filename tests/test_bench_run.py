# SPDX-License-Identifier: Apache-2.0
"""bench/run.py reports a failing or hanging benchmark and continues; and a whole run on the CPU."""

import csv
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from bench import run
from bench.ops import gather, vocab

ROOT = Path(__file__).resolve().parents[1]
PYTHON = [sys.executable, "-c"]


def with_commands(monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    monkeypatch.setattr(run, "command", lambda name, args: [*PYTHON, programs[name]])


def test_a_part_that_fails_is_told_and_the_rest_go_on(monkeypatch, capfd) -> None:
    with_commands(monkeypatch, head="raise SystemExit(3)", vocab="print('figures')")
    assert run.main(["--device", "cpu", "--parts", "head,vocab"]) == 1
    out = capfd.readouterr().out
    assert "figures" in out
    assert "| head | FAILED, exit status 3 |" in out
    assert "| vocab | done |" in out


def test_all_well_is_exit_status_0(monkeypatch, capfd) -> None:
    with_commands(monkeypatch, gather="", vocab="")
    assert run.main(["--device", "cpu", "--parts", "gather,vocab"]) == 0
    assert "FAILED" not in capfd.readouterr().out


def test_what_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    file = tmp_path / "child"
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)"
    )
    outcome = run.run_part("head", [*PYTHON, program], 2.0, dict(os.environ))
    assert outcome.failed and "OUT OF TIME" in outcome.text
    assert outcome.seconds < 20
    status = Path("/proc", file.read_text(), "stat")
    for _ in range(100):  # until it has ended, or waits for init to collect it
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("a child of the part still runs")


def test_a_part_that_is_not_there(monkeypatch, capfd) -> None:
    parts = {"head": run.Part("bench.ops.head", 9), "dance": run.Part("bench.dance", 9)}
    monkeypatch.setattr(run, "PARTS", parts)
    with_commands(monkeypatch, head="")
    assert run.main(["--device", "cpu"]) == 0
    assert "| dance | not in this checkout |" in capfd.readouterr().out
    assert run.main(["--device", "cpu", "--parts", "dance"]) == 1, "it was asked for by name"
    with pytest.raises(SystemExit):
        run.main(["--parts", "song"])


def test_the_commands(tmp_path: Path) -> None:
    args = run.parsed(["--quick", "--device", "cpu", "--out", str(tmp_path), "--corpus", "c.xz"])
    told = ["--device", "cpu", "--quick", "--out", str(tmp_path)]
    assert run.command("gather", args)[1:] == ["-m", "bench.ops.gather", *told]
    assert run.command("pair", args)[3:] == [*told, "--corpus", str(Path.cwd() / "c.xz")]
    assert run.command("plots", args)[1:] == ["-m", "bench.plots", str(tmp_path)]


def test_a_gpu_is_done_with_within_nine_minutes() -> None:
    """So a caller with ten minutes has one for the start and what comes after."""
    assert sum(run.limit(part, "cuda", False) for part in run.PARTS.values()) <= 540


def test_a_part_whose_package_is_missing(monkeypatch, capfd) -> None:
    parts = {"pair": run.Part("bench.decoding.pair", 9, needs="no_such_package")}
    monkeypatch.setattr(run, "PARTS", parts)
    with_commands(monkeypatch, pair="raise SystemExit(3)")
    assert run.main(["--device", "cpu"]) == 0
    assert "| pair | left out: no no_such_package |" in capfd.readouterr().out
    assert run.main(["--device", "cpu", "--parts", "pair"]) == 1, "it was asked for by name"


def test_all_files_are_packed_after_each_part(monkeypatch, tmp_path: Path) -> None:
    write = "open({!r}, 'w').write('figures'); raise SystemExit({})"
    out, packed = tmp_path / "out", tmp_path / "all.tar.gz"
    out.mkdir()
    files = {name: str(out / f"{name}.csv") for name in ("vocab", "gather")}
    with_commands(
        monkeypatch, vocab=write.format(files["vocab"], 0), gather=write.format(files["gather"], 1)
    )
    words = ["--device", "cpu", "--parts", "vocab,gather", "--pack", str(packed)]
    for more in ([], ["--out", str(tmp_path)]):
        with pytest.raises(SystemExit):
            run.main([*words, *more])
    assert run.main([*words, "--out", str(out)]) == 1
    with tarfile.open(packed) as file:
        assert set(file.getnames()) == {"out", "out/vocab.csv", "out/gather.csv"}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "all.tar.gz"}


@pytest.mark.slow
def test_a_quick_run_on_the_cpu(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench.run", "--quick", "--device", "cpu", "--out", tmp_path]
    # One thread: on a busy machine two would mostly wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    arms = {
        "head": "sparse_head packed",
        "vocab": "vocab_update_, 300 tokens, all new",
        "gather": "gather_rows_, 128 changed rows of 512, bf16",
    }
    for name, arm in arms.items():
        rows = list(csv.DictReader((tmp_path / f"{name}.csv").open()))
        assert arm in {row["arm"] for row in rows}
        # Microseconds: no call takes less than 0.01, and all calls fit into the run.
        assert min(float(row["p20_us"]) for row in rows) > 0.01
        assert sum(float(row["p50_us"]) for row in rows) < seconds * 1e6
        for row in rows:
            assert row["device"] and row["torch"] and row["microspec"] and row["commit"]
    texts = list(csv.DictReader((tmp_path / "e2e-depth6-top10-tree60.csv").open()))
    assert {"target alone", "dense", "static", "sparse"} <= {row["head"] for row in texts}
    assert {row["identical_outputs"] for row in texts} == {"1"}
    drafts = list(csv.DictReader((tmp_path / "draft_step.csv").open()))
    assert {"dense", "static 32k", "packed"} <= {row["arm"] for row in drafts}
    for name in ("bytes", "draft", "speedup", "timeline"):
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="calls on the CPU in place of graphs")
def test_the_gpus_vocabulary_and_gather_check_what_they_time() -> None:
    for module, arms in ((vocab, 2), (gather, 8)):
        rows = module.on_gpu(quick=True, rounds=1, device="cpu")
        assert len(rows) == arms
        for row in rows:
            assert row["floor_us"] == pytest.approx(row["bytes"] / row["copy_GBps"] / 1e3)
    whole = {row["arm"]: row["bytes"] for row in rows}
    assert whole["copy_ of 128 rows that lie side by side"] == 2 * 128 * 1024 * 2
    assert whole["gather_rows_ of 128 rows, bf16 to int8"] == 128 * 1024 * 3 + 2 * 3072 * 4
