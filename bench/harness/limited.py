# SPDX-License-Identifier: Apache-2.0
"""Run a program for a limited time, and end it with all its children."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        code: its exit status; None if it ran out of time.
        seconds: how long it ran.
    """

    code: int | None
    seconds: float


def run_limited(
    command: Sequence[str],
    seconds: float,
    *,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    grace: float = 0.0,
) -> Ended:
    """Run a command in the checkout's root, in a process group of its own.

    Args:
        seconds: the limit. After it the group is interrupted, and killed after `grace` more.
        log: file for both output streams; None: they are ours.
        environment: of the command; None: ours.
        grace: seconds to write results in after the interrupt, as pytest does.
    """
    began = time.monotonic()
    with log.open("w") if log else nullcontext() as file:
        errors = subprocess.STDOUT if log else None
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, preexec_fn=os.setpgrp, stdout=file, stderr=errors
        )
    try:
        code: int | None = process.wait(seconds)
    except subprocess.TimeoutExpired:
        code = None
        if grace:
            _signal(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
    finally:
        _signal(process.pid, signal.SIGKILL)  # also children that outlive the program
        process.wait()
    return Ended(code, time.monotonic() - began)


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
