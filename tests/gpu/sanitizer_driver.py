# SPDX-License-Identifier: Apache-2.0
"""Call every variant of every kernel once, at small shapes, under compute-sanitizer.

    PYTHONPATH=.:tests compute-sanitizer python tests/gpu/sanitizer_driver.py [--list] [--only TEXT]

The driver prints one line per case and, at the end, the number of cases within ``--seconds``. It
compares results with the CPU's, so a case that calls nothing, or something else, fails.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator

import torch
from compare import assert_bitwise
from generators import (
    E2M1,
    FLOATS,
    INT4,
    QUANTISED,
    gather_case,
    head_case,
    row_indexed,
    vocab_state,
)
from torch import Tensor
from tree_cases import cases

import microspec_kernels as mk

Case = tuple[str, Callable[[str], None]]


def there(value: object, device: str) -> object:
    return value.to(device) if isinstance(value, Tensor) else value


def head(**options: object) -> Callable[[str], None]:
    """Call sparse_head and sparse_logits with small integers: device and CPU agree in every bit."""

    def run(device: str) -> None:
        case = head_case(1, exact=True, **options)  # type: ignore[arg-type]
        operands = [t.to(device) for t in case.tensors()]
        rest = {name: there(value, device) for name, value in case.options().items()}
        k = 7
        got = (*mk.sparse_head(*operands, k, **rest), mk.sparse_logits(*operands, **rest))
        want = (
            *mk.sparse_head(*case.tensors(), k, **case.options()),
            mk.sparse_logits(*case.tensors(), **case.options()),
        )
        for index, (one, other) in enumerate(zip(got, want, strict=True)):
            if index == 2:  # logsumexp rounds
                torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(one.cpu(), other), ("logits", "token_ids", "", "z")[index]

    return run


def gather(**options: object) -> Callable[[str], None]:
    def run(device: str) -> None:
        want = gather_case(1, **options)  # type: ignore[arg-type]
        got = {name: there(value, device) for name, value in want.copy().arguments().items()}
        mk.gather_rows_(**want.arguments())
        mk.gather_rows_(**got)  # type: ignore[arg-type]
        assert torch.equal(got["slab_ids"].cpu(), want.slab_ids)  # type: ignore[union-attr]
        rows, other = row_indexed(got["slab"]).cpu(), row_indexed(want.slab)  # type: ignore[arg-type]
        assert torch.equal(rows.view(torch.uint8), other.view(torch.uint8))
        if want.slab_scale is not None:
            assert torch.equal(got["slab_scale"].cpu(), want.slab_scale)  # type: ignore[union-attr]

    return run


def update(
    capacity: int, counts: tuple[int, ...], num_groups: int = 1, ragged: bool = False
) -> Callable[[str], None]:
    def run(device: str) -> None:
        vocab_size = 3 * capacity + 7
        pinned = tuple(range(min(3, capacity - 1)))
        want = vocab_state(vocab_size, capacity, num_groups=num_groups, pinned=pinned, clock=2**33)
        got = [tensor.to(device) for tensor in want.tensors()]
        rng = torch.Generator().manual_seed(capacity)
        for count in counts:
            shape = (count,) if ragged else (num_groups, count)
            tokens = torch.randint(-1, vocab_size, shape, generator=rng)
            owners = torch.randint(-1, num_groups, (count,), generator=rng) if ragged else None
            mk.vocab_update_(*want.tensors(), tokens, token_groups=owners)
            mk.vocab_update_(*got, tokens.to(device), token_groups=there(owners, device))  # type: ignore[arg-type]
            for one, other in zip(got, want.tensors(), strict=True):
                assert torch.equal(one.cpu(), other)

    return run


def learn(capacity: int, vocab_size: int, num_groups: int = 1) -> Callable[[str], None]:
    """Observe and count, then refill, begin anew with other counts, and move the floor."""

    def run(device: str) -> None:
        rng = torch.Generator().manual_seed(capacity)
        want = vocab_state(vocab_size, capacity, num_groups=num_groups, pinned=(1,), clock=2**33)
        tally = mk.Tally(vocab_size, num_lists=2, num_requests=num_groups)
        lists = torch.arange(num_groups) % 3  # list 2 does not exist
        tally.request_lists.copy_(lists)
        ranks = torch.randperm(vocab_size, generator=rng).int()
        cpu = (*want.tensors(), tally.data, ranks)
        gpu = [tensor.to(device) for tensor in cpu]
        for pinned, reset in ((capacity // 2, True), (capacity // 3, False), (0, True)):
            tokens = torch.randint(-2, vocab_size + 2, (num_groups, 700), generator=rng)
            lengths = torch.randint(0, 101, (3 * num_groups,), generator=rng)
            for tensors in (cpu, gpu):
                *state, data, ranks = tensors
                there, owned = tokens.to(ranks.device), mk.Tally.over(data, vocab_size, 2)
                step = there[:, :300].clamp(-1, vocab_size - 1).reshape(-1, 100)
                groups = torch.arange(num_groups * 300, device=ranks.device) // 300
                mk.vocab_observe_(
                    *state, step, lengths=lengths.to(ranks.device), token_rows=ranks,
                    token_groups=groups, tally=data, num_lists=2,
                )  # fmt: skip
                counted = owned.text_counts, owned.seen
                options = {"total_counts": owned.total_counts}
                mk.vocab_count_(*counted, there, request_lists=owned.request_lists, **options)
                of_groups = owned.request_lists.where(owned.request_lists < 2, -1)
                mk.vocab_refill_(
                    *state, owned.text_counts, ranks, of_groups, **options, pinned=pinned,
                    reset=reset,
                )  # fmt: skip
            for one, other in zip(gpu, cpu, strict=True):
                assert torch.equal(one.cpu(), other)

    return run


def tree(op: str, arguments: dict[str, object]) -> Callable[[str], None]:
    def run(device: str) -> None:
        given = {name: there(value, device) for name, value in arguments.items()}
        want = getattr(mk, op)(**arguments)
        got = getattr(mk, op)(**given)
        written = [name for name in given if op == "tree_grow_" and name.startswith("pool_")]
        pairs = [(given[name], arguments[name]) for name in written]
        for one, other in (*zip(got, want, strict=True), *pairs):
            assert_bitwise(one.cpu(), other)  # the pools have NaN

    return run


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def head_cases() -> Iterator[Case]:
    shape = {"vocab_size": 300, "capacity": 203, "active": 150}
    for dtype, weight_dtype in ((d, r) for d in FLOATS for r in (d, *QUANTISED, INT4, E2M1)):
        name = f"head {short(dtype)} {short(weight_dtype)}"
        options = {**shape, "dtype": dtype, "weight_dtype": weight_dtype}
        yield f"{name} simt one row", head(m=1, dim=320, **options)
        yield f"{name} simt four rows", head(m=4, dim=320, bias=dtype, **options)
        yield f"{name} simt unaligned", head(m=3, dim=333, gap=1, **options)
        yield f"{name} simt several passes", head(m=2, dim=17 * 1024, **options)
        if dtype == torch.float32 or weight_dtype in (INT4, E2M1):
            continue  # no tensor cores
        for m in (10, 30, 60):
            yield f"{name} mma {m} rows", head(m=m, dim=640, bias=torch.float32, **options)
        yield f"{name} mma split", head(m=60, dim=8192, packed=True, **options)
        yield (
            f"{name} mma groups",
            head(m=70, dim=256, num_groups=3, padding=True, packed=True, **options),
        )
    bf16 = {"dtype": torch.bfloat16, "dim": 64}
    for capacity, m in itertools.product((1, 8, 9, 4096, 4097, 16384, 17000), (1, 6)):
        sizes = {"vocab_size": capacity + 50, "capacity": capacity, "active": capacity}
        yield f"head select {capacity} keys, {m} rows", head(m=m, **sizes, **bf16)
    yield "head in two launches", head(m=300, **shape, **bf16)
    yield "head nothing active", head(m=5, vocab_size=9, capacity=9, active=0, **bf16)


def gather_cases() -> Iterator[Case]:
    shape = {"vocab_size": 200, "capacity": 150, "num_groups": 2}
    for dtype in (*FLOATS, *QUANTISED, INT4, E2M1):
        for dim, gap in ((512, 0), (36, 0), (33, 1)):
            name = f"gather copy {short(dtype)} {dim}+{gap}"
            yield name, gather(dtype=dtype, dim=dim, gap=gap, **shape)
    for dtype, target in itertools.product(FLOATS, (*QUANTISED, INT4)):
        for dim in (512, 33, 70_000):
            sizes = shape if dim < 1000 else {"vocab_size": 20, "capacity": 12, "num_groups": 1}
            name = f"gather {short(dtype)} to {short(target)} {dim}"
            yield name, gather(dtype=dtype, slab_dtype=target, dim=dim, **sizes)


def update_cases() -> Iterator[Case]:
    for capacity in (1, 600, 1024, 3072, 8000, 16384, 17000):
        yield f"vocab {capacity} slots", update(capacity, (1, 300, 513, 2 * capacity + 5))
    yield "vocab long prompt", update(3072, (20_000,))
    yield "vocab groups", update(200, (1, 50, 700), num_groups=9)
    yield "vocab ragged", update(200, (1, 50, 700), num_groups=9, ragged=True)
    for capacity, vocab_size in ((1, 7), (40, 33), (600, 2000), (3072, 40_000)):
        yield f"learn {capacity} slots of {vocab_size}", learn(capacity, vocab_size, num_groups=4)


def tree_op_cases() -> Iterator[Case]:
    for sound in (True, False):
        for number, (op, arguments) in enumerate(cases(sound=sound)):
            yield f"{op} {number}, sound {sound}", tree(op, arguments)


def every_case() -> list[Case]:
    return [*head_cases(), *gather_cases(), *update_cases(), *tree_op_cases()]


def succeeds(case: Case, device: str) -> bool:
    """Run a case and print a line about it."""
    name, run = case
    try:
        run(device)
    except Exception as error:
        print(f"FAILED  {name}: {error!r}"[:400], flush=True)
        return False
    print(f"ok      {name}", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="the cases' names, and nothing else")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no case after that")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    cases = [case for case in every_case() if args.only in case[0]]
    if args.list:
        print(*(name for name, _ in cases), sep="\n")
        return 0
    # Families take turns, so that an interrupted run has covered some of each.
    order = sorted(range(len(cases)), key=lambda i: (i * 7919) % max(1, len(cases)))
    end, done, failed = time.monotonic() + args.seconds, 0, 0
    for index in order:
        if time.monotonic() > end:
            break
        failed += not succeeds(cases[index], args.device)
        done += 1
    print(f"cases {done} of {len(cases)}, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
