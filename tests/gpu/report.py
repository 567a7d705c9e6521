# SPDX-License-Identifier: Apache-2.0
"""Write the report of a GPU test run as Markdown, from the JSON of run.py."""

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

Results = dict[str, Any]
SOME_WRONG = 3  # exit status of probe.py


def from_junit(path: Path) -> Results:
    """Collect counts by file, failures, skip reasons, the slowest tests and the tests' notes."""
    files: dict[str, Counter[str]] = {}
    failures, skips, notes = [], Counter[str](), []
    times: list[tuple[float, str]] = []
    for case in ElementTree.parse(path).iter("testcase"):
        if not case.get("name"):  # the entry of an interruption
            continue
        group = case.get("classname", "").rsplit(".", 1)[-1] or "collection"
        name = f"{group}::{case.get('name')}"
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        outcome = "failed" if bad is not None else "skipped" if skipped is not None else "passed"
        files.setdefault(group, Counter())[outcome] += 1
        seconds = float(case.get("time", 0))
        files[group]["seconds"] += seconds
        times.append((seconds, name))
        if bad is not None:
            failures.append({"test": name, "message": (bad.get("message") or "")[:600]})
        if skipped is not None:
            skips[skipped.get("message") or ""] += 1
        notes += [
            f"{name}: {p.get('name')} = {p.get('value')}"
            for p in case.findall("properties/property")
        ]
    return {
        "files": {name: dict(count) for name, count in sorted(files.items())},
        "failures": failures,
        "skips": dict(skips),
        "notes": notes,
        "slowest": [f"{name}: {seconds:.1f} s" for seconds, name in sorted(times)[:-8:-1]],
    }


def from_sanitizer(text: str) -> Results:
    """Parse compute-sanitizer's output and the driver's last line."""
    cases = re.search(r"^cases (\d+) of (\d+), (\d+) failed$", text, re.MULTILINE)
    # "ERROR SUMMARY: 3 errors"; racecheck: "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 …)"
    summary = re.search(r"=+ (?:\w+ SUMMARY: .*)", text)
    findings = re.findall(
        r"^=+ ((?:Invalid|Error|Warning|Barrier|Program hit).*)$", text, re.MULTILINE
    )
    kinds = Counter(re.sub(r"0x[0-9a-f]+|\d+", "…", finding) for finding in findings)
    return {
        "summary": summary.group(0).strip("= ") if summary else "no summary",
        "cases": int(cases[1]) if cases else 0,
        "of": int(cases[2]) if cases else 0,
        "wrong": int(cases[3]) if cases else 0,
        "findings": dict(kinds.most_common(20)),
    }


def outcome(part: Results) -> str:
    if part.get("passed"):
        return "passed"
    if part.get("left_out"):
        return "left out"
    return "out of time" if part.get("timed_out") else "FAILED"


def markdown(results: Results) -> str:
    lines = ["# GPU tests", ""]
    lines += [f"- {name}: {value}" for name, value in results["environment"].items()]
    lines += ["", "| part | outcome | seconds | |", "|---|---|---|---|"]
    for name, part in results["parts"].items():
        lines.append(f"| {name} | {outcome(part)} | {part['seconds']:.0f} | {_in_short(part)} |")
    for name, part in results["parts"].items():
        if "files" in part:
            lines += ["", f"## {name}", "", *_tests(part)]
        elif part.get("findings"):
            lines += ["", f"## {name}", ""]
            lines += [f"- {text} ({count} times)" for text, count in part["findings"].items()]
        if part.get("tail") and (part.get("shown") or not part.get("passed")):
            lines += ["", f"## {name}: the end of its output", "", "```", part["tail"], "```"]
    return "\n".join(lines) + "\n"


def _in_short(part: Results) -> str:
    if "files" in part:
        total = sum((Counter(count) for count in part["files"].values()), Counter())
        return ", ".join(f"{total[key]} {key}" for key in ("passed", "failed", "skipped"))
    if "cases" in part:
        return f"{part['summary']}; {part['cases']} of {part['of']} cases, {part['wrong']} wrong"
    return ""


def _tests(part: Results) -> list[str]:
    lines = ["| file | passed | failed | skipped | seconds |", "|---|---|---|---|---|"]
    for name, count in part["files"].items():
        row = [str(count.get(key, 0)) for key in ("passed", "failed", "skipped")]
        lines.append(f"| {name} | {' | '.join(row)} | {count.get('seconds', 0):.1f} |")
    for title, key in (("Slowest", "slowest"), ("Noted", "notes")):
        if part[key]:
            lines += ["", f"{title}: " + "; ".join(part[key])]
    if part["skips"]:
        lines += ["", "Skipped:", *(f"- {why} ({n} tests)" for why, n in part["skips"].items())]
    if part["failures"]:
        lines += ["", "Failed:", ""]
        lines += [
            f"- {f['test']}: {(f['message'].splitlines() or [''])[0]}" for f in part["failures"]
        ]
    return lines
