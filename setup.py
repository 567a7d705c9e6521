# SPDX-License-Identifier: Apache-2.0
"""Builds csrc/ with CMake and packs the result; everything else is in pyproject.toml."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None  # release/backend.py asked
    return Path(spec.origin).parent


def run(*command: str | Path) -> None:
    """Run a command or end the build: setuptools goes on after any exception of an editable one."""
    if status := subprocess.run(command).returncode:
        sys.exit(f"exit status {status}: {' '.join(map(str, command))}")


class BuildWithCMake(build_py):
    """Puts the shared library beside the Python files."""

    def run(self) -> None:
        if not self.editable_mode:
            # Or modules that were since renamed would be packed again.
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        ninja = shutil.which("ninja")
        # The path is given anew each time: ninja may have been that of a temporary environment.
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        default = ROOT / "build" / ("ninja" if ninja else "make")
        build = Path(os.environ.get("MICROSPEC_BUILD_DIR") or default)
        configure = ["cmake", "-S", ROOT, "-B", build, f"-DTORCH_DIR={torch_folder()}", *generator]
        run(*configure, *os.environ.get("CMAKE_ARGS", "").split())
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count())
        run("cmake", "--build", build, "--parallel", jobs)
        package = ROOT if self.editable_mode else Path(self.build_lib)
        run("cmake", "--install", build, "--prefix", package / "microspec_kernels")


class PlatformWheel(bdist_wheel):
    """One library through the stable ABI: the wheel depends on the platform, not on the Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


(ROOT / "build").mkdir(exist_ok=True)
with open(ROOT / "build" / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # another build of this checkout has the same folders
    setup(
        cmdclass={"build_py": BuildWithCMake, "bdist_wheel": PlatformWheel},
        distclass=BinaryDistribution,
    )
