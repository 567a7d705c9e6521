# SPDX-License-Identifier: Apache-2.0
"""A pretended CUDA device on a CPU, to rehearse code that needs a GPU.

    PYTHONPATH=tests/fake_cuda/site:$PWD python -m bench.ops.gather --quick --device cuda

gives the device to a process and to its children. In a test, ``with fake_cuda.installed():`` gives
it to the lines inside.

Tensors "on cuda" are CPU tensors whose storage is marked (memory.py). A ``TorchFunctionMode`` sees
every call of PyTorch, passes the marks on, and refuses what a GPU would refuse (calls.py):

- tensors of two devices in one call; a generator of another device than the tensor that it fills;
- while a graph is captured: whatever waits for the device (``item``, ``nonzero``, a boolean index,
  ``.cpu()``), copies from or to pageable memory, ``torch.tensor(…, device="cuda")``, work on a
  stream outside the capture, waiting for an event from outside, streams that are not joined;
- while a graph is captured: a function with shapes or dtypes that did not run before. On a GPU such
  a call may load a kernel, compile, tune or allocate a workspace, which a capture does not allow;
- under ``torch.cuda.set_sync_debug_mode("error")``: whatever waits for the device.

A graph is the list of the calls in its capture (graphs.py). What they wrote over is restored when
the capture ends, because a GPU only records them. A replay makes them again and writes over the
same results; the Python code between them does not run again, as on a GPU.

The package's ops are served by its CPU kernels, with the rules of its CUDA kernels (ops.py):
tensors of two devices are refused, and ids out of range count as empty. ``torch.compile`` returns
the function, and PyTorch claims to have Triton.

Streams run in program order, except inside ``with fake_cuda.late(which):``. There the package's ops
that write in place, and replays, run on the chosen streams as late as events allow. So what forgets
to wait for them finds the state of before, and an op that writes to what they will use is refused.

What it cannot show: a wrong kernel, any other race, times, memory use, and anything that compiles.
The L2 cache is small, so that benchmarks with cold caches take little time.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .calls import FakeCuda
from .memory import FakeCudaError
from .patches import patched
from .streams import Stream, device

__all__ = ["FakeCudaError", "environment", "installed", "late"]

SITE = Path(__file__).with_name("site")


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Pretend a CUDA device inside the context."""
    with patched(), FakeCuda():
        yield


@contextlib.contextmanager
def late(streams: Callable[[Stream], bool]) -> Iterator[None]:
    """Let streams run as late as events allow. Inside :func:`installed`.

    Args:
        streams: whether a stream is late.
    """
    before, device.late = device.late, streams
    try:
        yield
        device.finish_all()
    finally:
        device.late = before


def environment(*folders: str | Path) -> dict[str, str]:
    """Return the environment of a process that has the device; ``folders`` lead its import path."""
    paths = [*map(str, (SITE, *folders)), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
