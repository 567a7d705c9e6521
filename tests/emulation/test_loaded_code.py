# SPDX-License-Identifier: Apache-2.0
"""A GPU may run code that was compiled for an older one: the code decides what a launch may use."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulated_ops
import numpy as np
import pytest
import release_scripts
import torch
import tree_cases
from emulated import load

from microspec_kernels import Tally

# Compute capabilities times 100. The library has no code of their own for 1030, 1100 and 1210.
GPUS = (800, 860, 890, 900, 1000, 1030, 1100, 1200, 1210)
# The driver runs a cubin on later GPUs of its family, and compiles PTX for any later GPU.
PAIRS = [(code, gpu) for gpu in GPUS for code in GPUS if code <= gpu]
RNG = np.random.default_rng(0)
K, D, V, TOP = 24, 64, 40, 5
IDS = RNG.permutation(V)[:K].astype(np.int32)
NOT_SUPPORTED = "error 801"


@pytest.fixture(autouse=True)
def emulation() -> Iterator[Any]:
    module = load()
    module.configure(sms=3, block_shared=99 * 1024, sm_shared=100 * 1024, order="in order", seed=0)
    yield module
    module.configure(device_arch=0, dry=False)


def bf16(*shape: int) -> np.ndarray[Any, Any]:
    return (RNG.standard_normal(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)


HIDDEN, WEIGHT = bf16(6, D), bf16(V, D)
FEW = RNG.standard_normal((2, D), np.float32)
CODES = RNG.integers(0, 0x7F, (V, D)).astype(np.uint8)  # e4m3, without NaN
SCALES = RNG.random(V, np.float32)
INT4_WEIGHT = RNG.integers(0, 256, (V, D // 2), np.uint8).view("V1")
E2M1_WEIGHT = INT4_WEIGHT.view("S1")
E2M1_SCALES = RNG.integers(0, 0x7F, (V, D // 16)).astype(np.uint8)  # e4m3, without NaN
INT4_SCALES = RNG.integers(0x3F00, 0x3F80, (V, D // 32)).astype(np.uint16)  # bf16 in [0.5, 1)


def head(emulation: Any, hidden: Any, weight: Any, **options: Any) -> list[Any]:
    m = len(hidden)
    results = [np.zeros((m, TOP), np.float32), np.zeros((m, TOP), np.int64)]
    results.append(np.zeros(m, np.float32))
    emulation.sparse_head(*results, hidden, weight, IDS, TOP, **options)
    return results


def gather(emulation: Any, dtype: Any) -> list[Any]:
    slab, ids = np.zeros((K, D), dtype), np.full(K, -1, np.int32)
    scale = None if dtype == np.uint16 else np.zeros(K, np.float32)
    emulation.gather_rows_(slab, ids, WEIGHT, IDS, slab_scale=scale)
    return [slab, ids, *([] if scale is None else [scale])]


def update(emulation: Any, *tokens: Any) -> list[Any]:
    state = [np.full((1, K), -1, np.int32), np.full((1, K), -1, np.int64)]
    state += [np.full((1, V), -1, np.int32), np.zeros(1, np.int64)]
    emulation.vocab_update_(*state, *tokens[:1], token_groups=tokens[1] if tokens[1:] else None)
    return state


def count(emulation: Any) -> list[Any]:
    tables = [np.zeros(shape, np.int32) for shape in ((2, V), (3, 2), (V,))]
    lists = np.array([1, 0, 1])
    tokens = np.tile(IDS[:9], (3, 1))
    emulation.vocab_count_(*tables[:2], tokens, request_lists=lists, total_counts=tables[2])
    return tables


def observe(emulation: Any) -> list[Any]:
    state = update(emulation, IDS[None, :9])
    tally = Tally(V, num_lists=2, num_requests=3)
    tally.request_lists.copy_(torch.tensor([1, 0, 1]))
    counted = tally.data.numpy()
    tokens, rows = IDS[5:20].reshape(3, 5), np.arange(V, dtype=np.int32)[::-1].copy()
    emulation.vocab_observe_(
        *state, tokens, lengths=np.array([5, 2, 0]), candidates=IDS[:4], token_rows=rows,
        token_requests=np.arange(19) % 4, tally=counted, num_lists=2,
    )  # fmt: skip
    return [*state, counted]


def refill(emulation: Any, reset: bool) -> list[Any]:
    state = update(emulation, IDS[None, :9])
    counts, ranks = np.arange(2 * V, dtype=np.int32).reshape(2, V), np.arange(V, dtype=np.int32)
    emulation.vocab_refill_(*state, counts, ranks, np.array([1]), pinned=5, reset=reset)
    return state


def tree(emulation: Any, op: str) -> list[Any]:
    call = dict(tree_cases.cases())[op]  # the largest
    given = emulated_ops.arguments_of(op, call)
    options = {name: given.pop(name) for name in ("begin", "frontier") if name in given}
    arrays = [emulated_ops.as_array(value) for value in given.values()]
    options = {name: emulated_ops.as_array(value) for name, value in options.items()}
    getattr(emulation, op)(*arrays, **options)
    return [array for array in arrays if isinstance(array, np.ndarray)]


CALLS = {
    "tensor cores": lambda e: head(e, HIDDEN, WEIGHT),
    "tensor cores, int4": lambda e: head(e, HIDDEN, INT4_WEIGHT, weight_scale=INT4_SCALES),
    "tensor cores, e2m1": lambda e: head(e, HIDDEN, E2M1_WEIGHT, weight_scale=E2M1_SCALES),
    "multiply-adds": lambda e: head(e, FEW, WEIGHT[:, :D].astype(np.float32)),
    "multiply-adds, int4": lambda e: head(e, FEW, INT4_WEIGHT, weight_scale=INT4_SCALES),
    "multiply-adds, e2m1": lambda e: head(e, FEW, E2M1_WEIGHT, weight_scale=E2M1_SCALES),
    "gather": lambda e: gather(e, np.uint16),
    "quantise": lambda e: gather(e, np.int8),
    "update": lambda e: update(e, IDS[None, :9]),
    "two kernels": lambda e: update(e, np.resize(IDS, 30_000), np.arange(30_000) % 3 - 1),
    "count": count,
    "observe": observe,
    "refill": lambda e: refill(e, True),
    "refill of pinned tokens": lambda e: refill(e, False),
    **{op: lambda e, op=op: tree(e, op) for op in ("tree_grow_", "tree_cut", "tree_accept")},
}
FP8_CALLS = {
    "tensor cores, fp8": lambda e: head(e, HIDDEN, CODES, weight_scale=SCALES),
    "multiply-adds, fp8": lambda e: head(e, FEW, CODES, weight_scale=SCALES),
    "quantise, fp8": lambda e: gather(e, np.uint8),
}


def test_what_each_pair_may_use(emulation: Any) -> None:
    """The wait of dependent launch exists from sm_90 on, in the code, whatever the GPU is."""
    emulation.configure(arch=900)
    expected = {name: call(emulation) for name, call in (CALLS | FP8_CALLS).items()}
    for code, gpu in PAIRS:
        emulation.configure(arch=code, device_arch=gpu)
        assert emulation.compiled_arch() == code
        for name, call in (CALLS | FP8_CALLS).items():
            where = f"{name}, compiled for {code}, on {gpu}"
            emulation.runtime_calls()
            if name in FP8_CALLS and code < 890:
                with pytest.raises(RuntimeError, match=NOT_SUPPORTED):
                    call(emulation)
                continue
            for got, want in zip(call(emulation), expected[name], strict=True):
                np.testing.assert_array_equal(got, want, where)
            launches = [c for c in emulation.runtime_calls() if c[0] == "cudaLaunchKernelEx"]
            assert launches and all(c[4] == (code >= 900) for c in launches), where


STREAM_ORDER = """
import sys
sys.path[:0] = sys.argv[1:]
import numpy as np
from emulated import load
emulation = load()
emulation.configure(arch=900, sms=3)
slab, ids, weight = np.zeros((2, 8), np.int8), np.full(2, -1, np.int32), np.ones((3, 8), np.float32)
scale = np.zeros(2, np.float32)
emulation.gather_rows_(slab, ids, weight, np.arange(2, dtype=np.int32), slab_scale=scale)
print([call[4] for call in emulation.runtime_calls() if call[0] == "cudaLaunchKernelEx"])
"""


@pytest.mark.parametrize("value", [None, "", "0", "1"])
def test_dependent_launch_can_be_switched_off(value: str | None) -> None:
    variables = {k: v for k, v in os.environ.items() if k != "MICROSPEC_DEPENDENT_LAUNCH"}
    if value is not None:
        variables["MICROSPEC_DEPENDENT_LAUNCH"] = value
    done = subprocess.run(
        [sys.executable, "-c", STREAM_ORDER, str(Path(__file__).parents[1])],
        env=variables, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip() == f"[{value != '0'}]"


ARCHITECTURES = "80-real 86-real 89-real 90a-real 100-real 120"


@pytest.mark.parametrize(
    ("error", "toolkit", "driver", "parts"),
    [
        (35, 13000, 12080, ["built with CUDA 13.0", "NVIDIA driver 580 or later", "CUDA 12.8"]),
        (35, 12080, 11080, ["built with CUDA 12.8", "NVIDIA driver 525 or later", "CUDA 11.8"]),
        (35, 14010, 13000, ["built with CUDA 14.1", "a driver for CUDA 14.0 or later"]),
        (35, 13000, 0, ["there is no driver"]),
        (209, 13000, 13000, [ARCHITECTURES, "capability 11.0", "ARCHITECTURES=110-real"]),
        (222, 12080, 12040, ["only PTX", "capability 11.0", "a driver for CUDA 12.8", "CUDA 12.4"]),
    ],
)
def test_an_error_of_the_installation_says_what_to_do(
    emulation: Any, error: int, toolkit: int, driver: int, parts: list[str]
) -> None:
    advice = emulation.error_advice(error, toolkit, driver, 110, ARCHITECTURES)
    assert all(part in advice for part in (*parts, "MICROSPEC_BACKEND=triton")), advice
    drivers = release_scripts.load("sbom").OLDEST_DRIVER
    assert error != 35 or drivers.get(str(toolkit // 1000), "") in advice, "one truth"


def test_another_error_stands_alone(emulation: Any) -> None:
    assert emulation.error_advice(700, 13000, 13000, 90, ARCHITECTURES) == ""


def size(tokens: int) -> list[Any]:
    """Return arguments of an update whose shared memory grows with its tokens."""
    capacity = 8192
    state = [np.full((1, capacity), -1, np.int32), np.full((1, capacity), -1, np.int64)]
    state += [np.full((1, V), -1, np.int32), np.zeros(1, np.int64)]
    return [*state, np.zeros((1, tokens), np.int32)]


def test_no_thread_lowers_the_limit_of_another(emulation: Any) -> None:
    """One thread is about to launch when another, of the same kernel, asks for less."""
    emulation.configure(arch=800, sms=5, block_shared=163 * 1024, dry=True, launches_meet=2)
    emulation.runtime_calls()
    errors: list[BaseException] = []

    def call(tokens: int) -> None:
        try:
            emulation.vocab_update_(*size(tokens))
        except BaseException as error:
            errors.append(error)

    large, small = (threading.Thread(target=call, args=(n,)) for n in (8000, 2500))
    large.start()
    while not emulation.waiting_launches() and large.is_alive():
        time.sleep(0.001)
    small.start()
    large.join(100)
    small.join(100)
    assert not errors
    calls = emulation.runtime_calls()
    launches = [c for c in calls if c[0] == "cudaLaunchKernelEx"]
    assert len(launches) == 2 and len({c[1] for c in launches}) == 1, "the same kernel"
    allowed = [c for c in calls if c[0] == "cudaFuncSetAttribute"]
    assert len(allowed) == 1, "asked once for a kernel and device"
    assert allowed[0][3] > max(c[3] for c in launches)


def test_each_kernel_asks_once_for_each_device(emulation: Any) -> None:
    asked = []
    for sms in (7, 9, 7, 9):  # two devices
        emulation.configure(arch=900, sms=sms)
        emulation.runtime_calls()
        for call in CALLS.values():
            call(emulation)
        calls = [c[1:3] for c in emulation.runtime_calls() if c[0] == "cudaFuncSetAttribute"]
        assert len({device for _, device in calls}) <= 1
        asked += calls
    assert len(asked) == len(set(asked)), "no kernel twice on a device"
    assert asked and len(asked) == 2 * len({kernel for kernel, _ in asked}), "each on both"
