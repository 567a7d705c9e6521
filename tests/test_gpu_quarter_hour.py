# SPDX-License-Identifier: Apache-2.0
"""tests/gpu/quarter_hour.py: stages, limits and the two files, with stages that do nothing."""

import ctypes
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpu import conformance, quarter_hour, report, run

pytestmark = pytest.mark.slow

FACTS = {"device": "NVIDIA H200", "commit": "made up"}
OUT = "nvidia-h200-quarter-hour"


def stage(limit: float, code: int = 0, seen: list[Any] | None = None) -> quarter_hour.Stage:
    def start(out: Path, seconds: float, quick: bool) -> report.Results:
        (out / "figures.csv").write_text("made up\n")
        if seen is not None:
            seen.append((out.name, seconds))
        return {"seconds": 1.0, "exit": code, "passed": code == 0}

    return quarter_hour.Stage(limit, "is it made up?", start)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs quarter_hour.py with given stages."""
    monkeypatch.setattr(quarter_hour, "WORK", tmp_path / "work")
    monkeypatch.setattr(run, "environment", lambda: dict(FACTS))
    monkeypatch.setenv("PYTHONPATH", "")

    def start(stages: dict[str, quarter_hour.Stage], *words: str) -> int:
        monkeypatch.setattr(quarter_hour, "STAGES", stages)
        monkeypatch.setattr(sys, "argv", ["quarter_hour.py", "--out", str(tmp_path), *words])
        return quarter_hour.main()

    return start


def packed(folder: Path) -> set[str]:
    with tarfile.open(folder / f"{OUT}.tar.gz") as file:
        names = (Path(name) for name in file.getnames())
        return {str(name.relative_to("nvidia-h200/quarter-hour")) for name in names if name.suffix}


def test_each_stage_is_packed_before_the_next(call: Callable[..., int], tmp_path: Path) -> None:
    def look(out: Path, seconds: float, quick: bool) -> report.Results:
        assert packed(tmp_path) == {"probe/figures.csv", "results.json", "report.md"}
        assert "| probe | passed |" in (tmp_path / f"{OUT}.md").read_text()
        return {"seconds": 1.0, "exit": 0, "passed": True}

    assert call({"probe": stage(9), "look": quarter_hour.Stage(9, "what is there?", look)}) == 0
    made = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert made == {f"{OUT}.md", f"{OUT}.tar.gz"}


def test_limits_follow_from_what_is_left(call: Callable[..., int], tmp_path: Path) -> None:
    seen: list[Any] = []
    stages = {"probe": stage(60, seen=seen), "right": stage(150, seen=seen), "long": stage(900)}
    assert call(stages, "--budget", "100") == 1, "a stage was left out"
    assert seen[0] == ("probe", 60)
    assert seen[1][0] == "right" and 90 < seen[1][1] <= 100
    assert "| long | left out |" in (tmp_path / f"{OUT}.md").read_text()
    assert call(stages, "--quick", "--budget", "1") == 0, "a quick run has no budget"


@pytest.mark.parametrize(("code", "others"), [(0, True), (report.SOME_WRONG, True), (1, False)])
def test_nothing_follows_a_probe_that_failed(
    call: Callable[..., int], tmp_path: Path, code: int, others: bool
) -> None:
    assert call({"probe": stage(9, code), "right": stage(9)}) == int(code != 0)
    assert ("right/figures.csv" in packed(tmp_path)) == others
    assert "probe/figures.csv" in packed(tmp_path)


def test_named_stages_add_to_the_results(call: Callable[..., int], tmp_path: Path) -> None:
    stages = {"probe": stage(9), "right": stage(9, 1)}
    assert call(stages, "probe") == 0
    assert call(stages, "right") == 1
    text = (tmp_path / f"{OUT}.md").read_text()
    assert "| probe | passed |" in text and "| right | FAILED |" in text
    call({"right": stage(9)})
    assert "| probe |" not in (tmp_path / f"{OUT}.md").read_text(), "a whole run begins anew"
    with pytest.raises(SystemExit):
        call(stages, "left")


def test_without_a_gpu(
    call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "environment", lambda: {"device": "none"})
    assert call({"probe": stage(9)}) == 1
    assert "NOT RUN: no CUDA device" in capsys.readouterr().out


def test_the_stages_fit_into_ten_minutes() -> None:
    """At their limits the first ones fit; at half of them, which is what we expect, nine do."""
    limits = [stage.limit for stage in quarter_hour.STAGES.values()]
    assert sum(limits[:6]) <= quarter_hour.BUDGET
    assert sum(limits[:9]) / 2 <= quarter_hour.BUDGET - 30
    assert quarter_hour.BUDGET + 20 <= 600 - 20, "the last stage's grace, and the packing"


# A shell could not trap the signal where this test runs as a background job, which ignores it.
INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(print("was interrupted", flush=True)))
print("began", flush=True)
time.sleep(60)
"""


def test_what_a_program_wrote_before_its_limit_is_kept(tmp_path: Path) -> None:
    found = run.run_logged([sys.executable, "-c", INTERRUPTED], tmp_path / "log", 3.0)
    assert (found["timed_out"], found["passed"]) == (True, False)
    assert found["tail"] == "began\nwas interrupted\n"


@pytest.mark.parametrize("seconds", [30.0, 60.0, 75.0, 300.0])
def test_the_sanitizers_driver_has_time_to_start_and_to_run(seconds: float) -> None:
    own = run.driver_seconds(seconds, quick=False)
    assert min(45, seconds / 2) == seconds - own
    assert run.driver_seconds(seconds, quick=True) == min(60, own)


def test_the_conformance_library_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that its kernels call is linked: Python binds every symbol of a library it loads."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    monkeypatch.setattr(conformance, "path", lambda arch: tmp_path / f"{arch}.so")
    for arch in (80, 90):
        library = ctypes.CDLL(str(conformance.build(arch)))
        for name in ("mma", "bulk", "chain", "f16_of_e4m3", "ping_pong"):
            assert getattr(library, name)


def test_results_are_read_again(call: Callable[..., int], tmp_path: Path) -> None:
    call({"probe": stage(9)})
    held = tmp_path / "work" / "nvidia-h200" / "quarter-hour" / "results.json"
    assert json.loads(held.read_text())["environment"] == FACTS
