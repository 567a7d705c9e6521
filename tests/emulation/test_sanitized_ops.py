# SPDX-License-Identifier: Apache-2.0
"""The ops under sanitizers, on small shapes: no report, and the results of a plain build."""

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import emulated_ops
import numpy as np
import pytest
import torch
import tree_cases
from emulated import load
from emulated_ops import as_array
from generators import E2M1, FLOATS, INT4, QUANTISED, gather_case, head_case, vocab_state
from nonsense import INT32, INT64, PINNED
from sanitized import Call, run

from microspec_kernels import Tally, reference

DEVICES = {800: 163 * 1024, 900: 227 * 1024}
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


def device(arch: int, *tensors: Any, **settings: Any) -> dict[str, Any]:
    fp8 = any(getattr(t, "dtype", None) == FP8 for t in tensors)
    arch = max(arch, 890) if fp8 else arch
    return {"arch": arch, "block_shared": DEVICES.get(arch, DEVICES[800]), **settings}


def head(name: str, arch: int, k: int, case: Any, settings: dict[str, Any]) -> Iterator[Call]:
    tensors, options = case.tensors(), case.options()
    arrays = [as_array(t) for t in tensors]
    options = {name: as_array(value) for name, value in options.items()}
    rows, capacity = len(case.hidden), case.active_ids.size(-1)
    on = device(arch, *tensors, **settings)
    top = [
        np.zeros((rows, k), np.float32),
        np.zeros((rows, k), np.int64),
        np.zeros(rows, np.float32),
    ]
    yield Call(f"head {name}", "_emulation", "sparse_head", [*top, *arrays, k], options, on)
    logits = np.zeros((rows, capacity), np.float32)
    yield Call(f"logits {name}", "_emulation", "sparse_logits", [logits, *arrays], options, on)


def heads(
    arch: int, settings: dict[str, Any], shapes: list[tuple[int, int, int]]
) -> Iterator[Call]:
    kinds = itertools.cycle(
        (dtype, weight_dtype, packed, num_groups)
        for weight_dtype, dtype, packed, num_groups in itertools.product(
            (None, *QUANTISED, INT4, E2M1), FLOATS, (False, True), (None, 2)
        )
    )
    for number, (m, dim, capacity) in enumerate(shapes):
        # 7 and 60 share no factor, so every kind has its turn if there are enough shapes.
        dtype, weight_dtype, packed, num_groups = next(itertools.islice(kinds, 6, None))
        options = {
            "packed": packed,
            "num_groups": num_groups,
            "bias": dtype,
            "gap": 16 * (number % 2),
        }
        options["padding"] = num_groups is not None
        case = head_case(
            number, m=m, dim=dim, vocab_size=2 * capacity, capacity=capacity,
            dtype=dtype, weight_dtype=weight_dtype, softcap=9.0 * (number % 2), **options,
        )  # fmt: skip
        name = f"{number}: M {m}, D {dim}, K {capacity}, {dtype}, {weight_dtype}, {options}"
        yield from head(name, arch, 5, case, settings)


def four_bit_heads(arch: int, settings: dict[str, Any]) -> Iterator[Call]:
    """Yield heads over 4-bit rows for tensor cores: tiles of 16, 32 and 64 rows, and a gap."""
    shapes = [(3, 192, False), (20, 64, True), (33, 1088, False)]
    for rows, (number, (m, dim, packed)) in itertools.product((INT4, E2M1), enumerate(shapes)):
        case = head_case(
            number, m=m, dim=dim, capacity=21, dtype=BF16, weight_dtype=rows, packed=packed,
            gap=32 * (number % 2),
        )  # fmt: skip
        yield from head(f"{rows}, M {m}, D {dim}, {packed}", arch, 5, case, settings)


def gathers(arch: int, settings: dict[str, Any]) -> Iterator[Call]:
    quantised = (*QUANTISED, INT4)
    pairs = [(f, s) for f in FLOATS for s in (f, *quantised)]
    pairs += [(q, q) for q in (*quantised, E2M1)]
    for number, (dtype, slab_dtype) in enumerate(pairs):
        for dim in (7, 64):
            case = gather_case(
                number, dim=dim, vocab_size=20, capacity=9, num_groups=2,
                dtype=dtype, slab_dtype=slab_dtype, gap=dim % 3,
            )  # fmt: skip
            tensors = case.arguments()
            arrays = {name: as_array(value) for name, value in tensors.items()}
            name = f"gather {dtype}, {slab_dtype}, D {dim}"
            on = device(arch, *tensors.values(), **settings)
            yield Call(name, "_emulation", "gather_rows_", [], arrays, on)


def vocabs(arch: int, settings: dict[str, Any]) -> Iterator[Call]:
    rng = torch.Generator().manual_seed(0)
    shapes = [(5, 9, 2, 0), (40, 30, 1, 0), (40, 700, 1, 0), (40, 13, 3, 0), (1100, 700, 1, 2**40)]
    for capacity, n, num_groups, gap in shapes:
        size = 2 * capacity + 10
        state = vocab_state(size, capacity, num_groups=num_groups, pinned=(3, 4))
        before = torch.randint(-1, size, (num_groups, capacity), generator=rng)
        reference.vocab_update_(*state.tensors(), before)
        state.clock.add_(gap)  # only a slower path can sort tokens of this age
        tokens = torch.randint(-1, size, (num_groups, n), generator=rng)
        arrays = [as_array(t) for t in (*state.tensors(), tokens)]
        name = f"vocab K {capacity}, N {n}, G {num_groups}, gap {gap}"
        yield Call(name, "_emulation", "vocab_update_", arrays, {}, device(arch, **settings))
    # Ragged batches with groups that do not exist; the longer one narrows its groups first.
    for n in (700, 15_000):
        state = vocab_state(60, 40, num_groups=2)
        tokens = torch.randint(-1, 60, (n,), generator=rng)
        groups = torch.randint(-1, 3, (n,), generator=rng)
        groups[::9] += 2**16
        arrays = [as_array(t) for t in (*state.tensors(), tokens)]
        options, on = {"token_groups": as_array(groups)}, device(arch, **settings)
        yield Call(f"vocab ragged, N {n}", "_emulation", "vocab_update_", arrays, options, on)


def learned(arch: int, settings: dict[str, Any]) -> Iterator[Call]:
    """Yield counts, and refills whose last token is decided by each level of the order."""
    rng = torch.Generator().manual_seed(1)
    on = device(arch, **settings)
    for number, (capacity, size, ties) in enumerate(
        [(5, 9, 2), (40, 90, 50), (40, 90, 1), (33, 3000, 2), (70, 65, 9)]
    ):
        counts = torch.randint(0, ties, (2, size), generator=rng).int()
        ranks = torch.randperm(size, generator=rng).int() // (1 + number % 2)
        seen = torch.zeros(3, (size + 31) // 32, dtype=torch.int32)
        tokens = torch.randint(-2, size + 2, (3, 40), generator=rng)
        options = {"request_lists": np.array([1, 0, 2]), "total_counts": counts[0].numpy().copy()}
        arrays = [as_array(t) for t in (counts, seen, tokens)]
        yield Call(f"count V {size}", "_emulation", "vocab_count_", arrays, options, on)
        for pinned, reset in ((capacity // 2, True), (0, True), (capacity // 3, False)):
            state = vocab_state(
                size, capacity, num_groups=2, pinned=tuple(range(0, min(capacity, size), 3))
            )
            before = torch.randint(-1, size, (2, capacity // 2), generator=rng)
            reference.vocab_update_(*state.tensors(), before)
            arrays = [as_array(t) for t in (*state.tensors(), counts, ranks, torch.tensor([1, 0]))]
            options = {"total_counts": counts.sum(0).int().numpy()} if number % 3 else {}
            options |= {"pinned": pinned, "reset": reset}
            name = f"refill {number}: K {capacity}, V {size}, ties {ties}, {pinned}, {reset}"
            yield Call(name, "_emulation", "vocab_refill_", arrays, options, on)


def observed(arch: int, settings: dict[str, Any]) -> Iterator[Call]:
    """Yield steps of ids as they lie, and mapped ones with lengths and candidates; two blocks."""
    rng = torch.Generator().manual_seed(2)
    for number, (capacity, n, num_groups) in enumerate([(5, 9, 1), (40, 700, 1), (13, 60, 3)]):
        size, mapped = 2 * capacity + 10, number > 0
        state = vocab_state(size, capacity, num_groups=num_groups, pinned=(3, 4))
        before = torch.randint(-1, size, (num_groups, capacity), generator=rng)
        reference.vocab_update_(*state.tensors(), before)
        tally = Tally(size, num_lists=1 + number, num_requests=4)
        tally.request_lists.copy_(torch.arange(4) % (2 + number))
        tokens = torch.randint(-1, size, (n,), generator=rng)
        options: dict[str, Any] = {"tally": tally.data}
        if mapped:
            tokens = tokens.view(-1, 5)
            options |= {
                "lengths": torch.randint(-1, 7, (len(tokens),), generator=rng),
                "candidates": torch.randint(-1, size, (30,), generator=rng).int(),
                "token_rows": torch.randperm(size, generator=rng).int() - 2,
            }
            n += 30
        options["token_requests"] = torch.randint(-1, 5, (n,), generator=rng)
        if num_groups > 1:
            options["token_groups"] = torch.randint(-1, num_groups + 1, (n,), generator=rng)
        arrays = [as_array(t) for t in (*state.tensors(), tokens)]
        options = {name: as_array(tensor) for name, tensor in options.items()}
        options["num_lists"] = tally.num_lists
        name, on = f"observe K {capacity}, N {n}, G {num_groups}", device(arch, **settings)
        yield Call(name, "_emulation", "vocab_observe_", arrays, options, on)


def trees(
    arch: int, settings: dict[str, Any], sound: bool = True, far: bool = False
) -> Iterator[Call]:
    """Yield calls of the tree ops; not sound: a parent is any place; far: or out of range."""
    for number, (op, arguments) in enumerate(tree_cases.cases(far, sound)):
        call = emulated_ops.arguments_of(op, arguments)
        options = {name: call.pop(name) for name in ("begin", "frontier") if name in call}
        yield Call(
            f"{op} {number}, sound {sound}, far {far}", "_emulation", op,
            [as_array(value) for value in call.values()],
            {name: as_array(value) for name, value in options.items()},
            device(arch, **settings),
        )  # fmt: skip


def nonsense(arch: int, settings: dict[str, Any]) -> Iterator[Call]:
    """Yield states that no update leaves, with invalid tokens, which a device does not check."""
    rng = random.Random(0)
    for number in range(60):
        num_groups, capacity, size = (
            rng.randint(1, 3),
            rng.choice((0, 1, 5, 9, 40)),
            rng.randint(1, 50),
        )
        ids = (*INT32, *range(size), size, size + 1)
        clock = [rng.choice((*INT64, PINNED)) for _ in range(num_groups)]
        values = {
            "ids": (ids, (num_groups, capacity), np.int32),
            "stamps": ((*INT64, PINNED, *clock), (num_groups, capacity), np.int64),
            "slots": ((*INT32, *range(capacity + 2)), (num_groups, size), np.int32),
            "clock": (clock, (num_groups,), np.int64),
            "tokens": (
                (*ids, *range(size), 2**32),
                (num_groups, rng.choice((1, 7, 600))),
                np.int64,
            ),
        }
        arrays = [
            np.array(rng.choices(choices, k=math.prod(shape)), dtype).reshape(shape)
            for choices, shape, dtype in values.values()
        ]
        name = f"nonsense {number}: K {capacity}, V {size}, {[a.shape for a in arrays]}"
        on = device(arch, **settings)
        yield Call(name, "_emulation", "vocab_update_", arrays, {}, on)
        tables = [
            np.array(rng.choices((*INT32, 5), k=math.prod(shape)), np.int32).reshape(shape)
            for shape in ((2, size), (3, (size + 31) // 32), (size,), (size,))
        ]
        options = {
            "token_requests": np.array(rng.choices((*INT64, 0, 1, 2), k=60)),
            "request_lists": np.array(rng.choices((*INT64, 0, 1), k=3)),
            "total_counts": tables[3],
        }
        tokens = np.array(rng.choices((*ids, 2**32), k=60))
        yield Call(
            f"count, {name}", "_emulation", "vocab_count_", [*tables[:2], tokens], options, on
        )  # fmt: skip
        count, lists = arrays[4].size + 9, number % 3
        words = 3 * (4 + (1 + (size + 31) // 32 if lists else 0)) + (lists + (lists > 1)) * size
        step_options = {
            "lengths": np.array(rng.choices((*INT64, 0, 1, 2), k=num_groups)),
            "candidates": np.array(rng.choices((*ids, 2**32), k=9)),
            "token_rows": np.array(rng.choices(ids, k=size), np.int32),
            "token_groups": np.array(rng.choices((*INT64, 0, 1, 2), k=count)),
            "token_requests": np.array(rng.choices((*INT64, 0, 1, 2), k=count)),
            "tally": np.array(rng.choices((*INT32, 5), k=words), np.int32),
            "num_lists": lists,
        }
        yield Call(f"observe, {name}", "_emulation", "vocab_observe_", arrays, step_options, on)
        read = [tables[0], tables[2], np.array(rng.choices((*INT64, 0, 1), k=num_groups))]
        options = {"pinned": rng.randint(0, capacity), "reset": number % 2 == 0}
        options |= {"total_counts": tables[3]} if number % 3 else {}
        yield Call(
            f"refill, {name}", "_emulation", "vocab_refill_", [*arrays[:4], *read], options, on
        )  # fmt: skip


def plain_results(calls: list[Call]) -> list[list[Any]]:
    emulation, results = load(), []
    for call in calls:
        emulation.configure(**call.settings, order="in order", copies="eager", resident_blocks=1)
        arguments = [a.copy() if isinstance(a, np.ndarray) else a for a in call.arguments]
        options = {n: v.copy() if isinstance(v, np.ndarray) else v for n, v in call.options.items()}
        getattr(emulation, call.function)(*arguments, **options)
        results.append(arguments + list(options.values()))
    return results


def reports_nothing(
    sanitizer: str, calls: list[Call], **settings: Any
) -> Iterator[tuple[Call, list[Any]]]:
    """Assert that the sanitizer reported nothing in any call; return the results."""
    under_test = [
        Call(c.name, c.module, c.function, c.arguments, c.options, {**c.settings, **settings})
        for c in calls
    ]
    outcome = run(sanitizer, under_test)
    for name, report in outcome.reports.items():
        assert report == "", f"{name}\n{report[:6000]}"
    return zip(calls, outcome.arrays, strict=True)


def check(sanitizer: str, calls: list[Call], **settings: Any) -> None:
    results = reports_nothing(sanitizer, calls, **settings)
    for (call, got), want in zip(results, plain_results(calls), strict=True):
        for one, other in zip(got, want, strict=True):
            if isinstance(one, np.ndarray):
                np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8), call.name)


@pytest.mark.parametrize("arch", DEVICES)
def test_address_and_undefined(arch: int) -> None:
    shapes = [(1, 40, 30), (1, 256, 70), (2, 7, 33), (3, 128, 65), (6, 64, 40), (9, 192, 40)]
    shapes += [(10, 64, 20), (17, 320, 17), (4, 1, 3), (13, 33, 20), (40, 64, 9), (8, 512, 16)]
    settings = {"sms": 2}
    calls = [*heads(arch, settings, shapes), *four_bit_heads(arch, settings)]
    calls += [*gathers(arch, settings), *vocabs(arch, settings), *learned(arch, settings)]
    calls += [*observed(arch, settings), *trees(arch, settings), *trees(arch, settings, False)]
    check("address", calls, order="shuffled", copies="late", resident_blocks=3)


@pytest.mark.parametrize("arch", DEVICES)
def test_nonsense_stays_inside(arch: int) -> None:
    """Results are not compared: if two tokens claim a slot, the last thread decides."""
    calls = [*nonsense(arch, {"sms": 2}), *trees(arch, {"sms": 2}, False, far=True)]
    results = reports_nothing("address", calls, order="shuffled", copies="late", resident_blocks=3)
    assert len(list(results)) == len(calls)


@pytest.mark.parametrize("arch", DEVICES)
def test_races(arch: int) -> None:
    settings = {"sms": 2}
    shapes = [(1, 64, 20), (3, 40, 20), (9, 128, 20), (10, 64, 33), (20, 64, 9)]
    calls = [*heads(arch, settings, shapes), *four_bit_heads(arch, settings)]
    calls += [*gathers(arch, settings), *vocabs(arch, settings), *learned(arch, settings)]
    calls += [*observed(arch, settings), *trees(arch, settings, False)]
    check("thread", calls, order="shuffled", copies="late", resident_blocks=4)
