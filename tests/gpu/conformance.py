# SPDX-License-Identifier: Apache-2.0
"""Build and call conformance.cu; ``python tests/gpu/conformance.py 90`` builds it ahead.

The library's name contains the architecture and a hash of the sources. A library that was built
elsewhere and copied into ``build/gpu`` is used only if both fit.
"""

import ctypes
import hashlib
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_suffix(".cu")
HEADERS = ("platform.cuh", "ptx.cuh", "launch.cuh")


def target(arch: int) -> str:
    """Map 90 to "90a": Hopper and later GPUs have architecture-specific instructions."""
    return f"{arch}a" if arch >= 90 else str(arch)


def path(arch: int) -> Path:
    files = [SOURCE, *(ROOT / "csrc" / "cuda" / name for name in HEADERS)]
    text = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    return ROOT / "build" / "gpu" / f"conformance-{target(arch)}-{text}.so"


def build(arch: int) -> Path:
    """Return the library for a compute capability times ten; compile it if it is missing."""
    library = path(arch)
    if library.exists():
        return library
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    library.parent.mkdir(parents=True, exist_ok=True)
    code = target(arch)
    command = [nvcc, "-std=c++17", "-O2", "-shared", "-Xcompiler", "-fPIC", f"-I{ROOT / 'csrc'}"]
    command += ["-gencode", f"arch=compute_{code},code=sm_{code}"]
    command += ["-cudart", "static", "-o", str(library), str(SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return library


@cache
def library(arch: int) -> ctypes.CDLL:
    return ctypes.CDLL(str(build(arch)))


if __name__ == "__main__":
    print(*(build(int(arch)) for arch in sys.argv[1:] or ["90"]), sep="\n")
