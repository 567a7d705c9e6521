# SPDX-License-Identifier: Apache-2.0
"""The emulation counts a kernel's static shared memory as ptxas does, for every kernel and GPU."""

import itertools
import multiprocessing
import subprocess
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
import sass
from emulated import load

pytestmark = [
    pytest.mark.xdist_group("static shared"),  # one process calls every kernel
    pytest.mark.skipif(
        not sass.architectures() if sass.cuobjdump() else True,
        reason="the library was built without nvcc, or there is no cuobjdump",
    ),
]
# What cuobjdump adds for the system, except to a kernel that does nothing; no launch counts it.
SYSTEM = {"sm_80": 0, "sm_86": 0, "sm_89": 0, "sm_90a": 1024, "sm_100": 1024, "sm_120": 1024}
FLOATS = (np.float32, np.float16, np.uint16)  # uint16 stands for bf16
ROWS = (None, np.int8, np.uint8)  # None: hidden's dtype; uint8 stands for fp8


def call_head(emulation: Any, hidden: Any, rows: Any, m: int, dim: int, capacity: int) -> None:
    weight = np.zeros((4, dim), hidden if rows is None else rows)
    scale = None if rows is None else np.zeros(4, np.float32)
    results = (np.zeros((m, 4), np.float32), np.zeros((m, 4), np.int64), np.zeros(m, np.float32))
    ids = np.zeros(capacity, np.int32)
    emulation.sparse_head(*results, np.zeros((m, dim), hidden), weight, ids, 4, weight_scale=scale)
    logits = np.zeros((m, capacity), np.float32)
    emulation.sparse_logits(logits, np.zeros((m, dim), hidden), weight, ids, weight_scale=scale)


def call_sample(emulation: Any, capacity: int) -> None:
    hidden, weight = np.zeros((1, 64), np.float32), np.zeros((4, 64), np.float32)
    results = np.zeros(1, np.int64), np.zeros(1, np.float32)
    law = np.ones(1, np.float32), np.zeros(1, np.int64), np.zeros(1, np.int64)
    emulation.sparse_sample(*results, hidden, weight, np.zeros(capacity, np.int32), *law)


def call_4bit_head(emulation: Any, rows: str, hidden: Any, m: int, dim: int, gap: int) -> None:
    """Call with 4-bit rows, V1 or S1; a gap between them makes them unaligned."""
    weight = np.zeros((4, dim // 2 + gap), rows)[:, : dim // 2]
    scale = np.zeros((4, dim // 32), np.uint16)
    results = (np.zeros((m, 4), np.float32), np.zeros((m, 4), np.int64), np.zeros(m, np.float32))
    hidden, ids = np.zeros((m, dim), hidden), np.zeros(8, np.int32)
    emulation.sparse_head(*results, hidden, weight, ids, 4, weight_scale=scale)


def call_4bit_gather(emulation: Any, rows: str, weight: Any, weight_scale: Any = None) -> None:
    slab, ids, scale = np.zeros((2, 32), rows), np.zeros(2, np.int32), np.zeros((2, 2), np.uint16)
    emulation.gather_rows_(
        slab, ids.copy(), weight, ids, slab_scale=scale, weight_scale=weight_scale
    )


def call_every_4bit_kernel(emulation: Any) -> None:
    """Call those of int4, V1, and of e2m1, S1; a row has D / 16 bytes of scales either way."""
    heads = [(1, 96, 0), (2, 96, 0), (2, 64, 1), (16, 64, 0), (32, 64, 0), (64, 64, 0)]
    for rows in ("V1", "S1"):
        for hidden, (m, dim, gap) in itertools.product(FLOATS, heads):
            call_4bit_head(emulation, rows, hidden, m, dim, gap)
        for gap in (0, 4, 1):
            weight = np.zeros((2, 32 + gap), rows)[:, :32]
            call_4bit_gather(emulation, rows, weight, np.zeros((2, 2), np.uint16))
    for source, gap in itertools.product(FLOATS, (0, 1)):
        call_4bit_gather(emulation, "V1", np.zeros((2, 64 + gap), source)[:, :64])


def call_tree(emulation: Any) -> None:
    numbers, costs = np.zeros((1, 9), np.int64), np.zeros((1, 9), np.float32)
    row = numbers[0, :1].copy()
    pool = (numbers.copy(), numbers.copy(), costs)
    level = (costs[:, :4].copy(), numbers[:, :4].copy(), costs[0, :1].copy())
    next_nodes = [numbers[:, :3].copy() for _ in range(3)]
    emulation.tree_grow_(*next_nodes, *pool, *level, 3)
    nodes = [numbers[:, :5].copy() for _ in range(3)]
    emulation.tree_cut(*nodes, np.zeros((1, 5, 5), np.bool_), row, *pool, 4)
    path = numbers[:, :3].copy()
    emulation.tree_accept(path, path.copy(), nodes[0], row, row.copy(), *nodes, 2)


def call_every_kernel(emulation: Any) -> None:
    emulation.configure(arch=900, sms=2, block_shared=99 * 1024, sm_shared=100 * 1024, dry=True)
    emulation.compiled_arch()
    for hidden, rows in itertools.product(FLOATS, ROWS):
        for m, dim in [(1, 64), (3, 64), (3, 63), (16, 64), (32, 64), (64, 64)]:
            call_head(emulation, hidden, rows, m, dim, 8)
    for capacity in (2000, 3000, 4000, 5000):  # select has a kernel for each
        call_head(emulation, np.float32, None, 1, 64, capacity)
    for capacity in (1000, 2000, 3000, 4000, 5000):  # and to draw
        call_sample(emulation, capacity)
    ids = np.zeros(2, np.int32)
    for source, target in itertools.product(FLOATS, ROWS):
        for dim in (64, 62, 63):
            slab = np.zeros((2, dim), source if target is None else target)
            scale = None if target is None else np.zeros(2, np.float32)
            emulation.gather_rows_(
                slab, ids.copy(), np.zeros((2, dim), source), ids, slab_scale=scale
            )
    for dim in (64, 62, 63):
        slab, scale = np.zeros((2, dim), np.int8), np.zeros(2, np.float32)
        emulation.gather_rows_(slab, ids.copy(), slab, ids, slab_scale=scale, weight_scale=scale)
    for capacity in (1, 3000, 8000, 16000, 20000):
        state = [np.zeros((1, capacity), np.int32), np.zeros((1, capacity), np.int64)]
        state += [np.zeros((1, 4), np.int32), np.zeros(1, np.int64)]
        emulation.vocab_update_(*state, np.zeros((1, 1), np.int32))
    large = np.zeros(30_000, np.int64)  # enough for narrow_groups_kernel
    emulation.vocab_update_(*state, large, token_groups=large)
    state = [np.zeros((1, 8), np.int32), np.zeros((1, 8), np.int64)]
    state += [np.zeros((1, 4), np.int32), np.zeros(1, np.int64)]
    counts, seen = np.zeros((1, 4), np.int32), np.zeros((1, 1), np.int32)
    emulation.vocab_count_(counts, seen, np.zeros((1, 3), np.int32))
    tokens, tally = np.zeros(3, np.int32), np.zeros(4, np.int32)
    emulation.vocab_observe_(*state, tokens, tally=tally)
    emulation.vocab_refill_(*state, counts, counts[0].copy(), np.zeros(1, np.int64))
    call_every_4bit_kernel(emulation)
    call_tree(emulation)
    emulation.configure(dry=False)


def emulated() -> dict[str, int]:
    """Return each kernel's bytes by its name, which `nm` knows by its place in the module."""
    emulation = load()
    call_every_kernel(emulation)
    symbols = subprocess.run(
        ["nm", str(emulation.__file__)], capture_output=True, text=True, check=True
    ).stdout
    names = {
        int(parts[0], 16): parts[2]
        for line in symbols.splitlines()
        if len(parts := line.split()) == 3
    }
    sizes = emulation.static_shared()
    return dict(zip(sass.readable(names[at] for at in sizes), sizes.values(), strict=True))


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    # In a process that has called no other kernel: the emulation remembers those of other tests.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(emulated).result()


@pytest.mark.parametrize("arch", SYSTEM)
def test_every_kernel(counted: dict[str, int], arch: str) -> None:
    system = SYSTEM[arch]
    compiled = {name: max(0, used.shared - system) for name, used in sass.resources(arch).items()}
    assert counted == compiled
