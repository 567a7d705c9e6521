# SPDX-License-Identifier: Apache-2.0
"""The CPU library under AddressSanitizer and UBSan, which must be loaded before Python starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import PRELOAD

pytestmark = pytest.mark.slow  # builds the library again

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library; later builds compile changes only."""
    import fcntl

    import torch

    build = ROOT / "build" / "sanitized"
    build.mkdir(parents=True, exist_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DMICROSPEC_CUDA=OFF"]
    configure += [f"-DTORCH_DIR={Path(torch.__file__).parent}", f"-DCMAKE_CXX_FLAGS={FLAGS}"]
    with open(build / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, ["cmake", "--build", str(build)]):
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "PATH": path}
            )
            assert done.returncode == 0, done.stdout[-8000:] + done.stderr[:6000]
    return build / "libmicrospec.so"


def test_no_content_of_any_tensor_reaches_outside(library: Path) -> None:
    preload = subprocess.run(
        ["g++", f"-print-file-name={PRELOAD['address']}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("sanitized_library_worker.py")),
            str(library),
        ],
        env={**os.environ, **options, "LD_PRELOAD": preload},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0 and done.stdout.split("\n")[-2] == "done", done.stderr[:6000]
