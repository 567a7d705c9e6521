# SPDX-License-Identifier: Apache-2.0
"""Each op enqueues the expected kernels on the device, and nothing else."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from generators import E2M1, FLOATS, INT4, QUANTISED, gather_case, head_case, vocab_state
from torch import Tensor
from tree_cases import cases

import microspec_kernels
from microspec_kernels import (
    Tally,
    gather_rows_,
    sparse_head,
    sparse_logits,
    sparse_sample,
    vocab_count_,
    vocab_observe_,
    vocab_refill_,
    vocab_update_,
)

KERNELS = (
    *("project_simt", "project_mma", "select", "finish_logits", "sample"),
    *("copy_rows", "quantise_rows", "vocab_update", "narrow_groups"),
    *("vocab_count", "refill_stamps", "refill"),
    *("tree_grow", "tree_cut", "tree_accept"),
)


def enqueued(call: Callable[[], object]) -> list[str]:
    """Return the work that the call enqueues, in order; kernels by their plain names."""
    call()  # loads the kernels and fills PyTorch's memory pool
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert events, "the profiler sees nothing on this device"
    names = [event.name for event in sorted(events, key=lambda e: e.time_range.start)]
    return [
        next((k for k in KERNELS if "microspec" in name and f"{k}_kernel" in name), name)
        for name in names
    ]


def there(options: dict[str, object]) -> dict[str, object]:
    return {k: v.cuda() if isinstance(v, Tensor) else v for k, v in options.items()}


@pytest.mark.parametrize(
    ("dtype", "m", "kernels"),
    [
        *((dtype, m, ["project_simt"]) for dtype in FLOATS for m in (1, 4)),
        *((dtype, m, ["project_mma"]) for dtype in FLOATS[:2] for m in (5, 10, 60, 256)),
        (torch.float32, 60, ["project_simt"]),
    ],
    ids=str,
)
def test_head_is_two_kernels(dtype: torch.dtype, m: int, kernels: list[str]) -> None:
    for weight_dtype in (dtype, *QUANTISED):
        case = head_case(
            1, m=m, dim=256, vocab_size=400, capacity=300, dtype=dtype, weight_dtype=weight_dtype
        )
        operands, options = [t.cuda() for t in case.tensors()], there(case.options())
        assert enqueued(lambda: sparse_head(*operands, 9, **options)) == [*kernels, "select"]  # noqa: B023
        assert enqueued(lambda: sparse_logits(*operands, **options)) == [*kernels, "finish_logits"]  # noqa: B023


@pytest.mark.parametrize(
    ("m", "dim", "kernel"),
    [(1, 96, "project_simt"), (1, 256, "project_mma"), (60, 256, "project_mma")],
)
def test_head_of_4_bit_rows_is_two_kernels(m: int, dim: int, kernel: str) -> None:
    for rows in (INT4, E2M1):
        case = head_case(1, m=m, dim=dim, dtype=torch.bfloat16, weight_dtype=rows)
        operands, options = [t.cuda() for t in case.tensors()], there(case.options())
        assert enqueued(lambda: sparse_head(*operands, 9, **options)) == [kernel, "select"]  # noqa: B023


def test_large_capacities_are_two_kernels() -> None:
    case = head_case(1, m=10, dim=64, vocab_size=25_000, capacity=20_000, dtype=torch.bfloat16)
    operands, options = [t.cuda() for t in case.tensors()], there(case.options())
    assert enqueued(lambda: sparse_head(*operands, 9, **options)) == ["project_mma", "select"]


@pytest.mark.parametrize("capacity", [300, 20_000])
def test_a_draw_is_two_kernels(capacity: int) -> None:
    case = head_case(1, m=10, dim=64, vocab_size=25_000, capacity=capacity, dtype=torch.bfloat16)
    operands, options = [t.cuda() for t in case.tensors()], there(case.options())
    rows = torch.ones(10).cuda(), *torch.arange(20).cuda().view(2, 10)
    logits = torch.empty(10, 25_000).cuda()
    for more in ({}, {"token_logits": logits}):
        call = partial(sparse_sample, *operands, *rows, **options, **more)
        assert enqueued(call) == ["project_mma", "sample"]


@pytest.mark.parametrize("slab_dtype", [torch.bfloat16, *QUANTISED], ids=str)
def test_gather_is_one_kernel(slab_dtype: torch.dtype) -> None:
    case = gather_case(1, dim=256, dtype=torch.bfloat16, slab_dtype=slab_dtype)
    operands = there(case.arguments())
    kernel = "copy_rows" if slab_dtype == torch.bfloat16 else "quantise_rows"
    assert enqueued(lambda: gather_rows_(**operands)) == [kernel]  # type: ignore[arg-type]


@pytest.mark.parametrize("capacity", [64, 3072, 20_000])
def test_update_is_one_kernel(capacity: int) -> None:
    state = [t.cuda() for t in vocab_state(50_000, capacity, num_groups=2).tensors()]
    tokens = torch.randint(50_000, (2, 300), device="cuda")
    assert enqueued(lambda: vocab_update_(*state, tokens)) == ["vocab_update"]


@pytest.mark.parametrize(("count", "kernels"), [(300, []), (76_800, ["narrow_groups"])])
def test_a_large_ragged_update_narrows_its_groups_first(count: int, kernels: list[str]) -> None:
    state = [t.cuda() for t in vocab_state(1000, 64, num_groups=256).tensors()]
    tokens = torch.randint(1000, (count,), device="cuda")
    groups = torch.randint(256, (count,), device="cuda")
    call = enqueued(lambda: vocab_update_(*state, tokens, token_groups=groups))
    assert call == [*kernels, "vocab_update"]


def test_count_is_one_kernel_observe_two_and_refill_one_or_two() -> None:
    size = 50_000
    state = [t.cuda() for t in vocab_state(size, 3072, num_groups=2).tensors()]
    tally = Tally(size, num_lists=2, num_requests=2, device="cuda")
    tokens, lists = torch.randint(size, (2, 300), device="cuda"), torch.tensor([1, 0]).cuda()
    ranks = torch.arange(size, dtype=torch.int32).cuda()
    counts = tally.text_counts
    assert enqueued(partial(vocab_count_, counts, tally.seen, tokens, request_lists=lists)) == [
        "vocab_count"
    ]
    groups = torch.arange(2, device="cuda").repeat_interleave(300)
    step = partial(vocab_observe_, *state, tokens, token_groups=groups)
    counting = {"tally": tally.data, "num_lists": 2}
    lengths = {"lengths": torch.tensor([3, 300]).cuda()}
    for options in (counting, lengths, {"token_rows": ranks}, {**counting, **lengths}):
        assert enqueued(partial(step, **options)) == ["vocab_observe", "vocab_update"]
    assert enqueued(step) == ["vocab_update"]
    refill = partial(vocab_refill_, *state, counts, ranks, lists, pinned=100)
    assert enqueued(refill) == ["refill", "refill_stamps"]
    assert enqueued(partial(refill, reset=False)) == ["refill"]


@pytest.mark.parametrize("op", ["tree_grow_", "tree_cut", "tree_accept"])
def test_a_tree_op_is_one_kernel(op: str) -> None:
    call = partial(getattr(microspec_kernels, op), **there(dict(cases())[op]))
    assert enqueued(call) == [op.rstrip("_")]
