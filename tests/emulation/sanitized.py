# SPDX-License-Identifier: Apache-2.0
"""Calls of the emulation under a sanitizer, which must be loaded before Python starts."""

import ctypes
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emulated import PRELOAD, build

OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Report every finding of every call, also if calls differ in one parameter only.
    "TSAN_OPTIONS": "suppress_equal_stacks=0 suppress_equal_addresses=0 history_size=2 exitcode=0",
}
ADDR_NO_RANDOMIZE = 0x0040000  # ThreadSanitizer needs fixed addresses


@dataclass(frozen=True)
class Call:
    name: str
    module: str
    function: str
    arguments: list[Any]
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    reports: dict[str, str]  # the sanitizer's output during each call
    arrays: list[list[Any]]  # each call's arrays afterwards; empty if the process ended earlier


def _fixed_addresses() -> None:
    ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE)


def run(sanitizer: str, calls: list[Call]) -> Outcome:
    library = subprocess.run(
        ["g++", f"-print-file-name={PRELOAD[sanitizer]}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        worker = str(Path(__file__).with_name("sanitized_worker.py"))
        done = subprocess.run(
            [sys.executable, worker, str(build(sanitizer)), str(results)],
            input=pickle.dumps([asdict(call) for call in calls]),
            env={**os.environ, **OPTIONS, "LD_PRELOAD": library},
            preexec_fn=_fixed_addresses,
            capture_output=True,
            timeout=600,
        )
        arrays = pickle.loads(results.read_bytes()) if results.exists() else []
    before, *sections = done.stderr.decode().split("=== ")
    assert sections, f"exit {done.returncode} before the first call\n{before}"
    reports = dict(section.split("\n", 1) for section in sections)
    assert arrays or any(reports.values()), f"exit {done.returncode}, and no report"
    return Outcome(reports, arrays)
