# SPDX-License-Identifier: Apache-2.0
"""The report of tests/gpu/run.py from made-up findings must contain every failure."""

import json
from pathlib import Path

import pytest
from gpu import report, run

JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest">
<testcase classname="tests.gpu.test_a" name="test_one[x]" time="1.5"/>
<testcase classname="tests.gpu.test_a" name="test_two" time="0.5"><failure message="wrong: 3
and more">trace</failure></testcase>
<testcase classname="tests.gpu.test_b" name="test_three" time="0.1"><skipped message="one GPU"/>
</testcase>
<testcase classname="tests.gpu.test_b" name="test_four" time="20"><properties>
<property name="cases" value="17"/></properties></testcase>
<testcase classname="" name="tests.gpu.test_c" time="0"><error message="collection failure"/>
</testcase>
</testsuite></testsuites>"""

RACES = """========= COMPUTE-SANITIZER
ok      vocab 1 slots
========= Error: Race reported between Write access at 0x1a0 in kernel.cuh:12
=========     and Read access at 0x1b0
========= Error: Race reported between Write access at 0x2c0 in kernel.cuh:12
cases 3 of 125, 1 failed
========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)
"""


def test_pytest_results(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    found = report.from_junit(tmp_path / "junit.xml")
    assert found["files"]["test_a"] == {"passed": 1, "failed": 1, "seconds": 2.0}
    assert found["files"]["test_b"] == {"skipped": 1, "passed": 1, "seconds": 20.1}
    assert found["files"]["collection"]["failed"] == 1
    assert [f["test"] for f in found["failures"]][:1] == ["test_a::test_two"]
    assert found["skips"] == {"one GPU": 1}
    assert found["notes"] == ["test_b::test_four: cases = 17"]
    assert found["slowest"][0] == "test_b::test_four: 20.0 s"


def test_sanitizer_results() -> None:
    found = report.from_sanitizer(RACES)
    assert (found["cases"], found["of"], found["wrong"]) == (3, 125, 1)
    assert found["summary"] == "RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"
    assert list(found["findings"].values()) == [2]
    assert report.from_sanitizer("")["summary"] == "no summary"
    clean = report.from_sanitizer("cases 125 of 125, 0 failed\n========= ERROR SUMMARY: 0 errors\n")
    assert (clean["summary"], clean["findings"]) == ("ERROR SUMMARY: 0 errors", {})


def results(device: str, name: str, passed: bool) -> dict[str, object]:
    part = {"seconds": 1.0, "timed_out": False, "exit": 0, "tail": "the end", "passed": passed}
    return {
        "environment": {"device": device},
        "parts": {name: {**part, **report.from_sanitizer(RACES)}},
    }


def test_two_runs_make_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, name, passed in zip(files, ("memcheck", "racecheck"), (True, False), strict=True):
        file.write_text(json.dumps(results("GPU X", name, passed)))
    both = run.combine(files)
    assert not run.write(both, tmp_path)
    text = (tmp_path / "gpu-tests.md").read_text()
    assert text in capsys.readouterr().out
    assert "| memcheck | passed |" in text
    assert "| racecheck | FAILED |" in text
    assert text.count("the end\n") == 1, "the output of what failed, and of nothing else"
    assert json.loads((tmp_path / "gpu-tests.json").read_text()) == both
    files[1].write_text(json.dumps(results("GPU Y", "racecheck", True)))
    with pytest.raises(SystemExit, match="one device"):
        run.combine(files)


def test_a_part_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    found = run.run_logged(["sleep", "60"], tmp_path / "log", 0.2)
    assert found["timed_out"]
    assert found["seconds"] < 30
    assert report.outcome({**found, "passed": False}) == "out of time"
