# SPDX-License-Identifier: Apache-2.0
"""The emulation must catch the bug in each planted kernel, and pass the kernel without it."""

import itertools
from typing import Any

import numpy as np
import pytest
from emulated import load
from sanitized import Call, run

SEEDS = range(20)
SCHEDULES = [
    ("in order", "eager", 1),
    ("in order", "late", 4),
    ("shuffled", "late", 4),
    ("shuffled", "random", 2),
    ("shuffled", "eager", 3),
]
MODES = [
    {"arch": arch, "order": order, "copies": copies, "resident_blocks": resident}
    for arch, (order, copies, resident) in itertools.product((800, 900), SCHEDULES)
]
TILES, BLOCKS, ROWS = 6, 8, [2, 0, 5, 2]
FLOATS = np.random.default_rng(0).integers(-99, 99, TILES * 64).astype(np.float32)
INTEGERS = np.random.default_rng(1).integers(-99, 99, BLOCKS * 32).astype(np.int32)
TABLE = np.arange(6 * 16, dtype=np.float32)


def arguments(kernel: str) -> list[Any]:
    """Return fresh arguments without the bug; the first is the result."""
    if kernel in ("tile_sums", "copied_sums"):
        return [np.zeros(64, np.float32), FLOATS.copy(), TILES]
    if kernel == "grid_sum":
        partials, ticket = np.full(BLOCKS, -1, np.int32), np.zeros(1, np.uint32)
        return [np.zeros(1, np.int32), partials, ticket, INTEGERS.copy(), BLOCKS]
    if kernel == "warp_sums":
        return [np.zeros(32, np.int32), INTEGERS[:32].copy()]
    if kernel == "copy_rows":
        return [np.zeros((len(ROWS), 16), np.float32), TABLE.copy(), np.array(ROWS, np.int32)]
    return [np.zeros(32, np.int32)]


def expected(kernel: str) -> np.ndarray[Any, Any]:
    if kernel in ("tile_sums", "copied_sums"):
        return np.roll(FLOATS.reshape(TILES, 64), -1, axis=1).sum(0)
    if kernel == "grid_sum":
        return INTEGERS.sum(keepdims=True)
    if kernel == "warp_sums":
        return np.full(32, INTEGERS[:32].sum())
    return TABLE.reshape(-1, 16)[ROWS] if kernel == "copy_rows" else np.arange(32)


KERNELS = ("tile_sums", "copied_sums", "grid_sum", "warp_sums", "copy_rows", "dependent")


def launch(kernel: str, bug: str, **settings: Any) -> np.ndarray[Any, Any]:
    planted = load("planted")
    planted.configure(**settings)
    call_arguments = arguments(kernel)
    assert getattr(planted, kernel)(*call_arguments, planted.Bug[bug]) == 0
    return call_arguments[0]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(map(str, mode.values())))
@pytest.mark.parametrize("kernel", KERNELS)
def test_without_a_bug(kernel: str, mode: dict[str, Any]) -> None:
    for seed in SEEDS:
        np.testing.assert_array_equal(launch(kernel, "none", seed=seed, **mode), expected(kernel))


def wrong_results(kernel: str, bug: str, **settings: Any) -> int:
    return sum(
        not np.array_equal(launch(kernel, bug, seed=seed, **settings), expected(kernel))
        for seed in SEEDS
    )


@pytest.mark.parametrize("order", ["in order", "shuffled"])
def test_a_missing_barrier_in_a_loop_spoils_the_result(order: str) -> None:
    assert wrong_results("tile_sums", "no_barrier_in_loop", order=order) == len(SEEDS)


@pytest.mark.parametrize("arch", [800, 900])
def test_a_missing_wait_spoils_the_result_unless_copies_are_eager(arch: int) -> None:
    def wrong(order: str, copies: str) -> int:
        return wrong_results("copied_sums", "no_wait", arch=arch, order=order, copies=copies)

    assert wrong("in order", "late") == wrong("shuffled", "late") == len(SEEDS)
    assert wrong("shuffled", "random") > len(SEEDS) / 2
    assert wrong("in order", "eager") == 0


def test_a_missing_syncwarp_spoils_the_result() -> None:
    assert wrong_results("warp_sums", "no_sync_warp", order="shuffled") == len(SEEDS)


FAILURES = [
    ("tile_sums", "barrier_of_some_threads", "DivergentBarrier", "has ended|have ended"),
    ("tile_sums", "two_barriers", "DivergentBarrier", "while others wait at __syncthreads"),
    ("warp_sums", "mask_without_caller", "WrongMask", "by a lane outside the mask"),
    (
        "warp_sums",
        "exited_lane",
        "WrongMask",
        "thread 20: the thread has ended|lane 20 in the mask",
    ),
    ("warp_sums", "lane_outside_mask", "WrongMask", "reads lane 16, which the mask leaves out"),
    ("warp_sums", "other_instruction", "DivergentWarp", "while block 0, thread .* is at __"),
    ("warp_sums", "wait_for_nobody", "Deadlock", "32 wait; block 0, thread 0 at mbarrier_wait"),
    ("copy_rows", "misaligned_load", "Misaligned", "a 16-byte load"),
    ("copy_rows", "misaligned_access", "Misaligned", "an access that needs 16 aligned bytes"),
    ("copy_rows", "shared_overrun", "SharedMemory", "wrote beside its shared arrays"),
    ("copy_rows", "too_much_shared", "SharedMemory", "49156 bytes of declared"),
    ("copied_sums", "uninitialised", "MBarrierMisuse", "not initialised"),
    ("copied_sums", "misaligned_copy", "Misaligned", "the source of an asynchronous copy"),
]
FAILURES_SM90 = [
    ("copied_sums", "more_bytes_than_announced", "MBarrierMisuse", "more bytes copied than"),
    ("copied_sums", "fewer_bytes_than_announced", "Deadlock", "64 wait; block 0, thread 0 at mbar"),
    ("copied_sums", "odd_bytes", "MBarrierMisuse", "an asynchronous copy of 248 bytes"),
    ("copied_sums", "no_arrival", "Deadlock", "64 wait; block 0, thread 0 at mbarrier_wait"),
    ("dependent", "missed_wait", "MissedWait", "block 0, thread 5: a dependent kernel's thread"),
]
# The errors of the other bugs name a line of the kernel.
WITHOUT_SITE = ("shared_overrun", "missed_wait")


def cases() -> list[Any]:
    params = []
    for mode in MODES:
        failures_of_arch = FAILURES + (FAILURES_SM90 if mode["arch"] == 900 else [])
        for kernel, bug, kind, message in failures_of_arch:
            name = "-".join(map(str, (kernel, bug, *mode.values())))
            params.append(pytest.param(kernel, bug, kind, message, mode, id=name))
    return params


@pytest.mark.parametrize(("kernel", "bug", "kind", "message", "mode"), cases())
def test_failure(kernel: str, bug: str, kind: str, message: str, mode: dict[str, Any]) -> None:
    planted = load("planted")
    assert issubclass(getattr(planted, kind), planted.EmulationError)
    for seed in range(3):
        with pytest.raises(getattr(planted, kind), match=message) as raised:
            launch(kernel, bug, seed=seed, **mode)
        assert str(raised.value).startswith(("block 0", "no thread can go on", "more bytes"))
        assert ("bugs.cu:" in str(raised.value)) == (bug not in WITHOUT_SITE)
    # The emulation still works after the error.
    np.testing.assert_array_equal(launch(kernel, "none", seed=0, **mode), expected(kernel))


def test_an_instruction_that_the_device_lacks() -> None:
    planted = load("planted")
    planted.configure(arch=800)
    with pytest.raises(planted.Unsupported, match="a conversion from e4m3"):
        planted.e4m3_to_f16(np.zeros(1, np.uint16), np.zeros(1, np.uint8))


def test_a_launch_beyond_the_limits_is_an_error() -> None:
    planted = load("planted")
    planted.configure(block_shared=1000)
    assert planted.launch_sized(1, 96, 1000) == 0
    wrong = [(1, 97, 0), (1, 1, 1001), (0, 96, 0), (1, 0, 0)]
    assert [planted.launch_sized(*sizes) for sizes in wrong] == [1, 1, 1, 1]
    planted.configure(block_shared=227 * 1024)


def call(kernel: str, bug: str, **settings: Any) -> Call:
    bugs = load("planted").Bug
    call_arguments = [*arguments(kernel), int(bugs[bug])]
    return Call(f"{kernel} {bug}", "planted", kernel, call_arguments, settings=settings)


@pytest.mark.parametrize(
    ("kernel", "bug", "arch", "report"),
    [
        ("copy_rows", "row_past_the_end", 800, "heap-buffer-overflow"),
        ("copy_rows", "shared_overrun", 800, "use-after-poison"),
        ("copied_sums", "past_the_source", 800, "heap-buffer-overflow"),
        ("copied_sums", "past_the_source", 900, "heap-buffer-overflow"),
        ("copy_rows", "misaligned_access", 800, "misaligned address"),
    ],
)
def test_address_sanitizer(kernel: str, bug: str, arch: int, report: str) -> None:
    settings = {"arch": arch, "order": "shuffled", "copies": "late"}
    calls = [call(kernel, "none", **settings), call(kernel, bug, **settings)]
    outcome = run("address", calls)
    assert outcome.reports[calls[0].name] == ""
    assert report in outcome.reports[calls[1].name]
    assert not outcome.arrays


def test_thread_sanitizer() -> None:
    """The races hardly ever change the result; the correct kernels have none."""
    bugs = [
        ("tile_sums", "no_barrier_in_loop"),
        ("copied_sums", "no_wait"),
        ("grid_sum", "no_fence"),
        ("grid_sum", "no_barrier_before_ticket"),
        ("grid_sum", "no_fence_after_ticket"),
        ("grid_sum", "plain_reset"),
        ("warp_sums", "no_sync_warp"),
    ]
    settings = {"order": "shuffled", "copies": "late", "resident_blocks": 4, "seed": 1}
    for arch in (800, 900):
        correct = [call(kernel, "none", arch=arch, **settings) for kernel in KERNELS]
        wrong = [call(kernel, bug, arch=arch, **settings) for kernel, bug in bugs]
        outcome = run("thread", correct + wrong)
        for one, arrays in zip(correct, outcome.arrays, strict=False):
            assert outcome.reports[one.name] == "", one.name
            np.testing.assert_array_equal(arrays[0], expected(one.function), one.name)
        for one in wrong:
            assert "data race" in outcome.reports[one.name], f"{one.name} on {arch}"
