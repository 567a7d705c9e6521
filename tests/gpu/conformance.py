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
CSRC = ROOT / "csrc"
# Beside its kernels, the library has what launches them.
SOURCES = (Path(__file__).with_suffix(".cu"), *sorted((CSRC / "cuda").glob("*.cu")))


def target(arch: int) -> str:
    """Map 90 to "90a": Hopper and later GPUs have architecture-specific instructions."""
    return f"{arch}a" if arch >= 90 else str(arch)


def path(arch: int) -> Path:
    files = [SOURCES[0], *sorted((CSRC / "cuda").glob("*.*"))]
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
    command = [nvcc, "-std=c++17", "-O2", "-shared", "-Xcompiler", "-fPIC", f"-I{CSRC}"]
    command += ["-gencode", f"arch=compute_{code},code=sm_{code}"]
    command += [f'-DMICROSPEC_CUDA_ARCHITECTURES="{code}-real"', "-cudart", "static"]
    command += ["-o", str(library), *map(str, SOURCES)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return library


@cache
def library(arch: int) -> ctypes.CDLL:
    return ctypes.CDLL(str(build(arch)))


if __name__ == "__main__":
    print(*(build(int(arch)) for arch in sys.argv[1:] or ["90"]), sep="\n")
