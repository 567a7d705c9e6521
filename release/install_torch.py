# SPDX-License-Identifier: Apache-2.0
"""Install torch: without an NVIDIA GPU, never the build that brings CUDA's libraries.

On x86-64 that build is the one in Python's own index: 2.7 GB to download, where the CPU build has
0.2 GB. The CPU build lies in an index of PyTorch's. pip prefers it where it sees one of the same
version; uv knows the index.
"""

import json
import shutil
import subprocess
import sys

TESTED = "torch==2.13.0"
PIP = [sys.executable, "-m", "pip"]


def planned(requirement: str) -> list[str]:
    """Names of what pip would install. It reads metadata and downloads no large file."""
    command = [*PIP, "install", "--dry-run", "--quiet", "--report", "-", requirement]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [item["metadata"]["name"] for item in json.loads(done.stdout)["install"]]


def brings_cuda(names: list[str]) -> bool:
    return any(name.startswith(("nvidia-", "nvidia_", "cuda-", "cuda_")) for name in names)


def run(*command: str) -> int:
    return subprocess.run(command).returncode


def main() -> None:
    if shutil.which("nvidia-smi"):
        sys.exit(run(*PIP, "install", "--quiet", "torch"))
    if not brings_cuda(planned(TESTED)):
        sys.exit(run(*PIP, "install", "--quiet", TESTED))
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
    if run(*PIP, "install", "--quiet", "uv") or run(*uv, "--torch-backend", "cpu", TESTED):
        sys.exit(
            "torch: its CPU build was not found, and the other, of 2.7 GB, is for GPUs: "
            "set PIP_EXTRA_INDEX_URL to PyTorch's CPU index (TORCH=torch takes the other)"
        )


if __name__ == "__main__":
    main()
