# SPDX-License-Identifier: Apache-2.0
"""No launch asks for more shared memory than its GPU has: K, N and D over every boundary."""

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import emulated_ops
import numpy as np
import pytest
import torch
from compare import assert_bitwise
from emulated import load
from generators import vocab_state

from microspec_kernels import reference

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


DTYPES = (np.int32, np.int64, np.float32, np.float16, np.uint16, np.int8, np.uint8, "V1")
LONGEST = {dtype: np.zeros(1 << 20, dtype) for dtype in DTYPES}


def row(dtype: Any, count: int) -> np.ndarray[Any, Any]:
    return LONGEST[dtype][:count]


def update(emulation: Any, capacity: int, tokens: int, ragged: bool = False) -> None:
    state = (row(np.int32, capacity)[None], row(np.int64, capacity)[None])
    groups = row(np.int32, tokens) if ragged else None
    batch = row(np.int32, tokens) if ragged else row(np.int32, tokens)[None]
    emulation.vocab_update_(
        *state, row(np.int32, 8)[None], row(np.int64, 1), batch, token_groups=groups
    )


def refill(emulation: Any, capacity: int, groups: int = 1) -> None:
    shape = (groups, capacity)
    state = (np.broadcast_to(row(dtype, capacity), shape) for dtype in (np.int32, np.int64))
    counts, clock = row(np.int32, 8), row(np.int64, groups)
    emulation.vocab_refill_(
        *map(np.copy, state), np.zeros((groups, 8), np.int32), clock, counts[None], counts, clock
    )


def count(emulation: Any, tokens: int) -> None:
    counts, seen = row(np.int32, 8)[None], row(np.int32, 1)[None]
    emulation.vocab_count_(counts, seen, row(np.int32, tokens)[None])


def observe(emulation: Any, tokens: int) -> None:
    state = (row(np.int32, 70)[None], row(np.int64, 70)[None], row(np.int32, 8)[None])
    emulation.vocab_observe_(
        *state, row(np.int64, 1), row(np.int32, tokens), tally=row(np.int32, 4)
    )


def select(emulation: Any, capacity: int) -> None:
    results = (np.zeros((1, 4), np.float32), np.zeros((1, 4), np.int64), np.zeros(1, np.float32))
    hidden, weight = np.zeros((1, 8), np.float32), np.zeros((4, 8), np.float32)
    emulation.sparse_head(*results, hidden, weight, row(np.int32, capacity), 4)


def project(emulation: Any, dim: int, rows: int, dtype: Any, weight_dtype: Any) -> None:
    results = (np.zeros((rows, 1), np.float32), np.zeros((rows, 1), np.int64))
    hidden = np.broadcast_to(row(dtype, dim), (rows, dim))
    weight = row(weight_dtype, dim // 2 if weight_dtype == "V1" else dim)[None]
    scale = {np.int8: row(np.float32, 1), "V1": row(np.uint16, dim // 32)[None]}.get(weight_dtype)
    ids = row(np.int32, 8)
    emulation.sparse_head(
        *results, np.zeros(rows, np.float32), hidden, weight, ids, 1, weight_scale=scale
    )


def quantise(emulation: Any, dim: int, source: Any, target: Any) -> None:
    slab, ids, scale = row(target, dim)[None], row(np.int32, 1), row(np.float32, 1)
    emulation.gather_rows_(slab, ids, row(source, dim)[None], ids, slab_scale=scale)


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


def test_ragged_update_at_every_capacity(gpu: Any) -> None:
    """A queue of the group's positions lies beside the other arrays."""
    assert not refused(lambda k: update(gpu, k, 1500, ragged=True), range(1, MOST + 1))


def test_update_at_every_length(gpu: Any) -> None:
    for capacity in (3500, 4096, 8192, 12000, 16384):
        lengths = range(1, 2 * capacity)
        assert not refused(lambda n, k=capacity: update(gpu, k, n), lengths), capacity


def test_refill_count_and_observe(gpu: Any) -> None:
    """Only the update of a step has arrays in shared memory that grow with the call."""
    assert not refused(lambda k: refill(gpu, k), [0, 1, 31, 32, 33, 1024, MOST, 1 << 20])
    assert not refused(lambda g: refill(gpu, 70, groups=g), [2, 3, 100, 4096])
    lengths = [0, 1, 255, 256, 257, 1 << 20]
    assert not refused(lambda n: count(gpu, n), lengths)
    assert not refused(lambda n: observe(gpu, n), lengths)


def grow(emulation: Any, frontier: int, answers: int, width: int) -> None:
    count = frontier * answers
    pool = (row(np.int64, count)[None], row(np.int64, count)[None], row(np.float32, count)[None])
    level = (row(dtype, count).reshape(frontier, answers) for dtype in (np.float32, np.int64))
    results = (np.zeros((1, min(width, count)), np.int64) for _ in range(3))
    nodes = np.zeros((1, frontier), np.int64)
    emulation.tree_grow_(*results, *pool, *level, row(np.float32, frontier), width, frontier=nodes)


def cut(emulation: Any, places: int, size: int) -> None:
    nodes = min(size, places) + 1
    pool = (row(np.int64, places)[None], row(np.int64, places)[None], row(np.float32, places)[None])
    # A dry launch writes nothing.
    mask = np.lib.stride_tricks.as_strided(np.zeros(1, np.bool_), (1, nodes, nodes), (0, 0, 0))
    results = (*(np.zeros((1, nodes), np.int64) for _ in range(3)), mask)
    emulation.tree_cut(*results, row(np.int64, 1), *pool, size)


def accept(emulation: Any, nodes: int, depth: int) -> None:
    length, of_text = min(depth, nodes - 1) + 1, row(np.int64, 1)
    paths, trees = row(np.int64, length)[None], row(np.int64, nodes)[None]
    emulation.tree_accept(paths, paths, trees, of_text, of_text, *[trees] * 3, depth)


def test_trees(gpu: Any) -> None:
    """Small trees have their links in shared memory, and a cut its bits of all places."""
    levels = [(1, 1, 1), (10, 10, 10), (16, 16, 300), (128, 128, 128), (512, 128, 1 << 16)]
    assert not refused(functools.partial(grow, gpu), levels)
    places = [0, 1, 31, 32, 33, 510, 2047, 2048, 2049, 1 << 16]
    assert not refused(functools.partial(cut, gpu), itertools.product(places, [1, 60, 3000]))
    nodes = [1, 61, 2047, 2048, 2049, 1 << 20]
    assert not refused(functools.partial(accept, gpu), itertools.product(nodes, [0, 6, 1 << 40]))


def test_a_tree_too_large_for_the_kernels(gpu: Any) -> None:
    assert refused(functools.partial(grow, gpu), [(513, 128, 4)]) == [(513, 128, 4)]
    assert refused(functools.partial(cut, gpu), [((1 << 16) + 1, 60)]) == [((1 << 16) + 1, 60)]


def most_shared(emulation: Any) -> int:
    """Return the most bytes that a launch since the last time had, static and dynamic."""
    static = emulation.static_shared()
    calls = [c for c in emulation.runtime_calls() if c[0] == "cudaLaunchKernelEx"]
    return max(static[kernel] + dynamic for _, kernel, _, dynamic, _ in calls)


def test_select_at_every_capacity(gpu: Any, request: pytest.FixtureRequest) -> None:
    assert not refused(lambda k: select(gpu, k), range(1, MOST + 1))
    _, block_shared, _ = GPUS[request.node.callspec.params["gpu"]]
    # A slot's order takes 4 bytes. Some GPUs have room for more than MOST.
    assert not refused(lambda k: select(gpu, k), range(block_shared // 4 - 1000, block_shared // 4))
    assert most_shared(gpu) == block_shared, "it has all that there is"


@pytest.mark.parametrize("source", [np.float32, np.uint16], ids=["fp32", "bf16"])
def test_quantising_gather_at_every_dim(gpu: Any, source: Any) -> None:
    """A staged row fills a block's shared memory at D = 25280 (fp32, 99 KB) to 116096 (bf16)."""
    largest = 240 * KB // np.dtype(source).itemsize
    targets = [np.int8] if gpu.arch() < 890 else [np.int8, np.uint8]
    for target in targets:
        dims = [*range(1, 256), *range(256, largest, 8), *range(largest - 64, largest)]
        assert not refused(lambda d, t=target: quantise(gpu, d, source, t), dims)


@pytest.mark.parametrize(
    ("rows_dtype", "step"), [(np.uint16, 1), (np.int8, 1), ("V1", 32)], ids=["bf16", "int8", "int4"]
)
def test_projection_at_every_dim(gpu: Any, rows_dtype: Any, step: int) -> None:
    for rows in (1, 3, 5, 16, 17, 33, 60, 256):
        dims = [*range(step, 130, step), *range(128, 40_000, 64)]
        call = functools.partial(project, gpu, rows=rows, dtype=np.uint16, weight_dtype=rows_dtype)
        assert not refused(call, dims), rows


@pytest.fixture
def desktop() -> Any:
    """Return the emulation of a GPU with little shared memory, which runs launches."""
    emulation = load()
    arch, block_shared, sm_shared = GPUS["sm_89"]
    emulation.configure(
        arch=arch, sms=3, block_shared=block_shared, sm_shared=sm_shared, order="in order"
    )
    return emulation


# On either side of 48 KB, and of all that a block of this GPU may have.
@pytest.mark.parametrize(
    ("capacity", "tokens"),
    [
        (4096, 2980),
        (4096, 3000),
        (3500, 3500),
        (8192, 1500),
        (12000, 100),
        (8192, 7456),
        (8192, 7457),
    ],
)
def test_updates_at_a_boundary(desktop: Any, capacity: int, tokens: int) -> None:
    rng = torch.Generator().manual_seed(capacity + tokens)
    state = vocab_state(20_000, capacity)
    for _ in range(2):
        batch = torch.randint(0, 20_000, (tokens,), generator=rng)
        want = state.copy()
        reference.vocab_update_(*want.tensors(), batch)
        emulated_ops.vocab_update_(*state.tensors(), batch)
        for name in ("active_ids", "slot_stamps", "token_slots", "clock"):
            assert_bitwise(getattr(state, name), getattr(want, name), name)


@pytest.mark.parametrize("capacity", [4096, 4097, 11872, 11873, 24928, 24929])
def test_select_at_a_boundary(desktop: Any, capacity: int) -> None:
    rng = torch.Generator().manual_seed(capacity)
    hidden = torch.randn(2, 16, generator=rng)
    weight = torch.randn(30_000, 16, generator=rng)
    ids = torch.randperm(30_000, generator=rng)[:capacity].int()
    got = emulated_ops.sparse_head(hidden, weight, ids, 7)
    want = reference.sparse_head(hidden, weight, ids, 7)
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[2], want[2])


@pytest.mark.parametrize(
    ("dim", "source", "target"),
    [
        (12224, torch.float32, torch.int8),
        (12288, torch.float32, torch.int8),
        (24500, torch.bfloat16, torch.float8_e4m3fn),
        (25280, torch.float32, torch.int8),
        (25284, torch.float32, torch.int8),
    ],
)
def test_gather_at_a_boundary(
    desktop: Any, dim: int, source: torch.dtype, target: torch.dtype
) -> None:
    weight = torch.randn(3, dim, generator=torch.Generator().manual_seed(dim)).to(source)
    ids = torch.tensor([2, 0], dtype=torch.int32)
    results = []
    for ops in (emulated_ops, reference):
        slab = torch.zeros(2, dim).to(target)
        slab_ids, scale = torch.full((2,), -1, dtype=torch.int32), torch.zeros(2)
        ops.gather_rows_(slab, slab_ids, weight, ids, slab_scale=scale)
        results.append((slab, slab_ids, scale))
    for got, want in zip(*results, strict=True):
        assert_bitwise(got, want)
