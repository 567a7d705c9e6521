"""No launch asks for more shared memory than its GPU has: K, N and D over every boundary."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from emulated import load

KB = 1024
# (compute capability times 100, bytes of shared memory that a block may ask for, bytes on an SM)
GPUS = {
    "sm_80": (800, 163 * KB, 164 * KB),
    "sm_86": (860, 99 * KB, 100 * KB),
    "sm_89": (890, 99 * KB, 100 * KB),
    "sm_90": (900, 227 * KB, 228 * KB),
    "sm_100": (1000, 227 * KB, 228 * KB),
    "sm_120": (1200, 99 * KB, 100 * KB),
}
MOST = 32768  # the largest K that these tests walk to


@pytest.fixture(params=GPUS)
def gpu(request: pytest.FixtureRequest) -> Any:
    """Return the emulation of one GPU, which checks launches and runs none."""
    arch, block_shared, sm_shared = GPUS[request.param]
    emulation = load()
    emulation.configure(
        arch=arch, sms=3, block_shared=block_shared, sm_shared=sm_shared, dry=True, seed=0
    )
    emulation.runtime_calls()
    yield emulation
    emulation.configure(dry=False)


def shaped(dtype: Any, *shape: int) -> np.ndarray[Any, Any]:
    """Return an array of this shape whose rows and columns are all the same few bytes."""
    strides = (0,) * (len(shape) - 1) + (np.dtype(dtype).itemsize,)
    memory = np.zeros(shape[-1:], dtype)
    return np.lib.stride_tricks.as_strided(memory, shape, strides)


LONGEST = {dtype: np.zeros(1 << 20, dtype) for dtype in (np.int32, np.int64, np.float32, np.uint16)}


def row(dtype: Any, count: int) -> np.ndarray[Any, Any]:
    return LONGEST[dtype][:count]


def update(emulation: Any, capacity: int, tokens: int) -> None:
    state = (row(np.int32, capacity)[None], row(np.int64, capacity)[None])
    emulation.vocab_update_(
        *state, row(np.int32, 8)[None], row(np.int64, 1), row(np.int32, tokens)[None]
    )


def select(emulation: Any, capacity: int) -> None:
    results = (np.zeros((1, 4), np.float32), np.zeros((1, 4), np.int64), np.zeros(1, np.float32))
    hidden, weight = np.zeros((1, 8), np.float32), np.zeros((4, 8), np.float32)
    emulation.sparse_head(*results, hidden, weight, row(np.int32, capacity), 4)


def refused(call: Any, sizes: Iterable[Any]) -> list[Any]:
    """Return the sizes whose launch is refused."""
    wrong = []
    for size in sizes:
        try:
            call(*size) if isinstance(size, tuple) else call(size)
        except RuntimeError:
            wrong.append(size)
    return wrong


def test_update_at_every_capacity(gpu: Any) -> None:
    for tokens in (1, 100, 1500, 3500, 1 << 20):
        assert not refused(lambda k, n=tokens: update(gpu, k, n), range(1, MOST + 1)), tokens


def test_update_at_every_length(gpu: Any) -> None:
    for capacity in (3500, 4096, 8192, 12000, 16384):
        lengths = range(1, 2 * capacity)
        assert not refused(lambda n, k=capacity: update(gpu, k, n), lengths), capacity


def test_select_at_every_capacity(gpu: Any) -> None:
    assert not refused(lambda k: select(gpu, k), range(1, MOST + 1))
