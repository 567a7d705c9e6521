# SPDX-License-Identifier: Apache-2.0
"""The device for the engines: MICROSPEC_TEST_DEVICE is "cpu", "cuda" or "cuda-graphs".

The last two need engines that are installed for a GPU.
"""

import os

DEVICE = os.environ.get("MICROSPEC_TEST_DEVICE") or "cpu"
if DEVICE not in ("cpu", "cuda", "cuda-graphs"):
    raise ValueError(f"MICROSPEC_TEST_DEVICE: expected cpu, cuda or cuda-graphs, got {DEVICE!r}")
ON_A_CPU, GRAPHS = DEVICE == "cpu", DEVICE == "cuda-graphs"

_KEPT = ["PATH", "HOME"] if ON_A_CPU else ["PATH", "HOME", "LD_LIBRARY_PATH", "CUDA_HOME"]


def inherited() -> dict[str, str]:
    """Return the variables of this process's environment that an engine needs."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ}
