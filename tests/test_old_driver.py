# SPDX-License-Identifier: Apache-2.0
"""The CUDA runtime with an old driver, or none: the library says which driver is needed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("old driver"),  # one process compiles
    pytest.mark.skipif(not (shutil.which("nvcc") and shutil.which("gcc")), reason="needs nvcc"),
]
CSRC = Path(__file__).parents[1] / "csrc"
PROGRAM = """
#include <cstdio>
#include "cuda/runtime.h"
int main() {
  int arch = 0;
  std::puts(microspec::cuda_error_text(microspec::cuda_compiled_arch(&arch)).c_str());
}
"""
# What the runtime asks of a driver before it refuses it.
DRIVER = """
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 10020; return 0; }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "main.cu").write_text(PROGRAM)
    (folder / "driver.c").write_text(DRIVER)
    sources = [folder / "main.cu", CSRC / "cuda/device.cu", CSRC / "cuda/launch.cu"]
    command = ["nvcc", "-std=c++17", "-cudart", "static", "-arch=sm_90", f"-I{CSRC}", *sources]
    definition = '-DMICROSPEC_CUDA_ARCHITECTURES="90-real"'
    subprocess.run([*command, definition, "-o", folder / "main"], check=True)
    library = folder / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, folder / "driver.c"], check=True)
    return folder


@pytest.mark.parametrize("old", [False, True])
def test_the_message_names_the_driver(folder: Path, old: bool) -> None:
    if not old and Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    path = str(folder) if old else ""
    done = subprocess.run(
        [folder / "main"],
        env={**os.environ, "LD_LIBRARY_PATH": path},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "which needs NVIDIA driver" in done.stdout
    assert ("this driver supports CUDA 10.2" if old else "there is no driver") in done.stdout
