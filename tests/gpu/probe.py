# SPDX-License-Identifier: Apache-2.0
"""Say what this machine has, and whether each op works at all on its GPU.

    PYTHONPATH=.:tests python tests/gpu/probe.py

Exit status 0: all is right; SOME_WRONG: some results are not; any other: no other test is worth it.
"""

import importlib.util
import os
import platform
import shutil
import sys

import torch

import microspec_kernels as mk
from gpu import sanitizer_driver
from gpu.report import SOME_WRONG
from microspec_kernels import _library, backends

TOOLS = ("nvidia-smi", "compute-sanitizer", "ncu", "nvcc", "g++", "git")
PACKAGES = (
    *("triton", "transformers", "numpy", "matplotlib", "pytest", "xdist", "hypothesis"),
    *("mistral_common", "prometheus_client"),
)
EVERY = 6  # of the sanitizer driver's cases, one in so many
REPLAYS = 200


def say(name: str, *what: object) -> None:
    print(f"{name}:", *what, flush=True)


def machine() -> None:
    say("system", platform.release(), "Python", platform.python_version(), os.cpu_count(), "CPUs")
    say("no program", *(tool for tool in TOOLS if shutil.which(tool) is None))
    say("no package", *(name for name in PACKAGES if importlib.util.find_spec(name) is None))
    device = torch.cuda.get_device_properties(0)
    l2 = f"{device.L2_cache_size >> 20} MB of L2"
    say("device", device.name, f"sm_{device.major}{device.minor}", l2, "torch", torch.__version__)
    say("library", _library.cuda_architectures(), "backend", mk.backend())
    assert backends.HAS_CUDA and mk.backend() == "cuda", "no CUDA kernels in the library"


def ops() -> tuple[int, int]:
    """Return how many cases ran, and how many were wrong."""
    cases = sanitizer_driver.every_case()[::EVERY]
    wrong = sum(not sanitizer_driver.succeeds(case, "cuda") for case in cases)
    say("cases", len(cases), "wrong", wrong)
    return len(cases), wrong


def graph() -> bool:
    """Capture the head at Llama-3.1-8B's sizes, compare a replay with a call, and time replays."""
    hidden = torch.randn(10, 4096, device="cuda").bfloat16()
    rows = torch.randn(1024, 4096, device="cuda").bfloat16()
    weight = rows.repeat(126, 1)[:128256]  # to draw every row takes seconds in a rehearsal
    ids = torch.randperm(128256, device="cuda")[:3072].int()
    want = mk.sparse_head(hidden, weight, ids, 10)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        got = mk.sparse_head(hidden, weight, ids, 10)
    captured.replay()
    same = all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(REPLAYS):
        captured.replay()
    ended.record()
    torch.cuda.synchronize()
    each = began.elapsed_time(ended) * 1e3 / REPLAYS
    say("graph", "right" if same else "WRONG", f"sparse_head, M = 10, warm: {each:.1f} us a replay")
    return same


def main() -> int:
    machine()
    count, wrong = ops()
    if wrong == count:
        return 1
    return SOME_WRONG if wrong + (not graph()) else 0


if __name__ == "__main__":
    sys.exit(main())
