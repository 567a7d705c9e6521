# SPDX-License-Identifier: Apache-2.0
"""The ops at the sizes of real models, against float64 and the CPU; runs agree bit by bit."""

from typing import Any

import pytest
import torch
from compare import assert_bitwise
from generators import FLOATS, QUANTISED, row_indexed, vocab_state
from torch import Tensor

from microspec_kernels import (
    Tally,
    gather_rows_,
    reference,
    tree_accept,
    tree_cut,
    tree_grow_,
    vocab_count_,
    vocab_observe_,
    vocab_refill_,
    vocab_update_,
)
from microspec_kernels._checks import MAX_TOP_K

from .cases import MODELS, Model, check_head, expected, first_rows, normal, random_ids, real_case

DTYPES = [(dtype, weight_dtype) for dtype in FLOATS for weight_dtype in (dtype, *QUANTISED)]
ROWS = (1, 2, 3, 4, 5, 8, 10, 16, 17, 31, 32, 33, 60, 64, 100, 300)
ROW_COUNTS = range(1, 65)


@pytest.mark.parametrize("packed", [False, True], ids=["indexed", "packed"])
@pytest.mark.parametrize(("dtype", "weight_dtype"), DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_head(
    name: str, dtype: torch.dtype, weight_dtype: torch.dtype, packed: bool, rng: torch.Generator
) -> None:
    options = {"dtype": dtype, "weight_dtype": weight_dtype, "packed": packed}
    case = real_case(rng, MODELS[name], m=max(ROWS), capacity=3072, **options)
    want = expected(case)
    for m in ROWS:
        check_head(*first_rows(case, want, m))


@pytest.mark.parametrize("packed", [False, True], ids=["indexed", "packed"])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, *QUANTISED], ids=str)
def test_every_number_of_rows_to_64(
    weight_dtype: torch.dtype, packed: bool, rng: torch.Generator
) -> None:
    case = real_case(
        rng,
        MODELS["llama"],
        m=64,
        capacity=1001,
        weight_dtype=weight_dtype,
        packed=packed,
        bias=torch.float32,
    )
    want = expected(case)
    for m in ROW_COUNTS:
        check_head(*first_rows(case, want, m))


CAPACITIES = (1, 7, 8, 9, 17, 511, 512, 1000, 4096, 4097, 8191, 16384, 16385, 20000)


@pytest.mark.parametrize("packed", [False, True], ids=["indexed", "packed"])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_capacities(capacity: int, packed: bool, rng: torch.Generator) -> None:
    """Few, most and all slots are taken; k is 1 to the limit."""
    for active in sorted({1, capacity // 3, capacity}):
        case = real_case(
            rng, MODELS["llama"], m=60, capacity=capacity, active=active, packed=packed,
            bias=torch.bfloat16,
        )  # fmt: skip
        want = expected(case)
        for m in (1, 10, 60):
            for k in (1, 10, MAX_TOP_K):
                check_head(*first_rows(case, want, m), k)


@pytest.mark.parametrize("num_groups", [1, 2, 7, 32])
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"), [(torch.bfloat16, r) for r in (torch.bfloat16, *QUANTISED)], ids=str
)
def test_groups_of_a_double_buffered_slab(
    num_groups: int, dtype: torch.dtype, weight_dtype: torch.dtype, rng: torch.Generator
) -> None:
    case = real_case(
        rng, MODELS["qwen"], m=300, capacity=512, num_groups=num_groups, slab_of=2, packed=True,
        dtype=dtype, weight_dtype=weight_dtype,
    )  # fmt: skip
    want = expected(case)
    for m in (1, 4, 10, 60, 300):
        check_head(*first_rows(case, want, m))


@pytest.mark.parametrize("dim", [1, 31, 33, 64, 100, 4088, 8192, 16384, 20000])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_widths(dim: int, dtype: torch.dtype, rng: torch.Generator) -> None:
    """Rows are no multiple of 16 bytes, or longer than a block holds at once."""
    for weight_dtype in (dtype, *QUANTISED):
        case = real_case(
            rng, Model(5000, dim), m=33, capacity=300, dtype=dtype, weight_dtype=weight_dtype
        )
        want = expected(case)
        for m in (1, 4, 9, 33):
            check_head(*first_rows(case, want, m))


PAIRS = [(f, s) for f in FLOATS for s in (f, *QUANTISED)] + [(q, q) for q in QUANTISED]


@pytest.mark.parametrize("changed", [0, 1, 128, 3072])
@pytest.mark.parametrize(("dtype", "slab_dtype"), PAIRS, ids=str)
def test_gather(
    dtype: torch.dtype, slab_dtype: torch.dtype, changed: int, rng: torch.Generator
) -> None:
    model, capacity = MODELS["llama"], 3072
    wanted = random_ids(rng, model.vocab_size, 1, capacity, capacity)[0]
    held = wanted.clone()
    slots = torch.randperm(capacity, generator=rng, device="cuda")[:changed]
    held[slots] = -1
    weight = normal(rng, (model.vocab_size, model.dim), dtype)
    quantised = dtype in QUANTISED
    weight_scale = torch.rand(model.vocab_size, generator=rng, device="cuda") if quantised else None
    slab = normal(rng, (capacity, model.dim), slab_dtype)
    scale = torch.rand(capacity, generator=rng, device="cuda") if slab_dtype in QUANTISED else None
    before, scale_before = row_indexed(slab).clone(), None if scale is None else scale.clone()
    ids = held.clone()
    gather_rows_(slab, ids, weight, wanted, slab_scale=scale, weight_scale=weight_scale)
    assert_bitwise(ids, wanted, "slab_ids")
    # Compute on the CPU: PyTorch on a GPU divides by a number by multiplying with its reciprocal.
    tokens = wanted[slots].long()
    rows = row_indexed(weight)[tokens].view(dtype).cpu()
    row_scale = None if weight_scale is None else weight_scale[tokens].cpu()
    if slab_dtype != dtype:
        rows, row_scale = reference.quantise_rows(rows, slab_dtype)
    before[slots] = row_indexed(rows.cuda())
    assert_bitwise(row_indexed(slab), before, "slab")
    if scale is not None and scale_before is not None and row_scale is not None:
        scale_before[slots] = row_scale.cuda()
        assert_bitwise(scale, scale_before, "slab_scale")


def streams(rng: torch.Generator, vocab_size: int, count: int, num_groups: int) -> list[Tensor]:
    """Return streams with few and many repetitions, with padding, and with one repeated token."""
    shape = (num_groups, count)
    return [
        torch.randint(-1, vocab_size, shape, generator=rng, device="cuda"),
        torch.randint(-1, 400, shape, generator=rng, device="cuda").int(),
        torch.randint(-1, vocab_size, shape, generator=rng, device="cuda").clamp(max=3000),
        torch.full(shape, 77, device="cuda"),
    ]


@pytest.mark.parametrize("texts", [1, 64])
@pytest.mark.parametrize(("width", "depth", "size"), [(1, 1, 1), (10, 6, 60), (16, 10, 255)])
def test_trees(texts: int, width: int, depth: int, size: int, rng: torch.Generator) -> None:
    """A draft's levels with many equal costs, its cut, and a target that agrees now and then."""
    places = width + (depth - 1) * width * width
    got = [torch.empty(texts, places, dtype=t, device="cuda") for t in (torch.int64,) * 2]
    got.append(torch.empty(texts, places, device="cuda"))
    want = [tensor.cpu() for tensor in got]
    frontiers: list[Any] = [None, None]
    begin = 0
    for level in range(depth):
        rows = texts * (width if level else 1)
        logits = -torch.randint(0, 9, (rows, width), generator=rng, device="cuda").float() / 4
        tokens = torch.randint(0, 2**40, (rows, width), generator=rng, device="cuda")
        answers = logits, tokens, logits.logsumexp(1)
        results = [
            tree_grow_(*pool, *(t.to(where) for t in answers), width, begin=begin, frontier=nodes)
            for pool, nodes, where in zip((got, want), frontiers, ("cuda", "cpu"), strict=True)
        ]
        for one, other in zip((*results[0], *got), (*results[1], *want), strict=True):
            assert_bitwise(one.cpu(), other)
        frontiers, begin = [result[0] for result in results], begin + rows // texts * width
    roots = torch.arange(texts)
    trees = tree_cut(roots.cuda(), *got, size), tree_cut(roots, *want, size)
    for one, other in zip(*trees, strict=True):
        assert_bitwise(one.cpu(), other)
    tokens, parents, *_ = trees[1]
    chosen = torch.full_like(tokens, -1).scatter(1, parents, tokens)  # a child of each node
    there = (tensor.cuda() for tensor in (tokens, parents, chosen))
    accepted = tree_accept(*there, depth), tree_accept(tokens, parents, chosen, depth)
    for one, other in zip(*accepted, strict=True):
        assert_bitwise(one.cpu(), other)
    assert bool((accepted[1][3] > 1).all())


@pytest.mark.parametrize("num_groups", [1, 5])
@pytest.mark.parametrize("capacity", [1, 1000, 1024, 1025, 3072, 8192, 16384, 20000])
@pytest.mark.parametrize("count", [1, 300, 513, 20_000, 1_000_000])
def test_vocab_update(count: int, capacity: int, num_groups: int, rng: torch.Generator) -> None:
    """The result equals the CPU op's bit for bit; other tests compare that op with an LRU."""
    if count == 1_000_000 and num_groups > 1:
        pytest.skip("one long prompt is enough")
    vocab_size = MODELS["llama"].vocab_size
    pinned = tuple(range(100, 100 + capacity // 8))
    want = vocab_state(vocab_size, capacity, num_groups=num_groups, pinned=pinned, clock=2**40)
    got = [tensor.cuda() for tensor in want.tensors()]
    for tokens in streams(rng, vocab_size, count, num_groups):
        vocab_update_(*got, tokens)
        vocab_update_(*want.tensors(), tokens.cpu())
        for name, one, other in zip(
            ("active_ids", "slot_stamps", "token_slots", "clock"),
            got,
            want.tensors(),
            strict=True,
        ):
            assert_bitwise(one.cpu(), other, name)


def test_vocab_update_of_a_ragged_batch(rng: torch.Generator) -> None:
    num_groups, vocab_size = 37, 5000
    want = vocab_state(vocab_size, 512, num_groups=num_groups)
    got = [tensor.cuda() for tensor in want.tensors()]
    for count in (1, 40, 700, 5000):
        tokens = torch.randint(-1, vocab_size, (count,), generator=rng, device="cuda")
        token_groups = torch.randint(-1, num_groups, (count,), generator=rng, device="cuda").int()
        vocab_update_(*got, tokens, token_groups=token_groups)
        vocab_update_(*want.tensors(), tokens.cpu(), token_groups=token_groups.cpu())
        for one, other in zip(got, want.tensors(), strict=True):
            assert_bitwise(one.cpu(), other)


@pytest.mark.parametrize("num_groups", [1, 5])
@pytest.mark.parametrize("capacity", [1, 1000, 3072, 16384, 32768])
@pytest.mark.parametrize("name", MODELS)
def test_count_observe_and_refill(
    name: str, capacity: int, num_groups: int, rng: torch.Generator
) -> None:
    """From no counts at all to those of many texts; the CPU op's results bit for bit."""
    vocab_size, pinned = MODELS[name].vocab_size, 3 * capacity // 4
    state = vocab_state(vocab_size, capacity, num_groups=num_groups, pinned=(1,), clock=2**40)
    tally = Tally(vocab_size, num_lists=2, num_requests=num_groups)
    tally.request_lists.copy_(torch.arange(num_groups) % 2)
    ranks = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(1)).int()
    want = [*state.tensors(), tally.data, ranks]
    got = [tensor.cuda() for tensor in want]
    for step in range(5):
        draws = torch.rand(num_groups, 20_000, generator=rng, device="cuda")
        tokens = (draws**4 * vocab_size).long()
        for tensors in (got, want):
            *vocab, data, ranks = tensors
            owned = Tally.over(data, vocab_size, 2)
            lists, total = owned.request_lists, owned.total_counts
            options = {"total_counts": total if step != 1 else None, "pinned": pinned}
            vocab_refill_(*vocab, owned.text_counts, ranks, lists, **options, reset=step % 2 == 0)
            there = tokens.to(ranks.device)
            counted = owned.text_counts, owned.seen
            vocab_count_(*counted, there, request_lists=lists, total_counts=total)
            owned.seen.zero_()
            groups = torch.arange(num_groups, device=ranks.device).repeat_interleave(300)
            vocab_observe_(
                *vocab, there[:, :150].reshape(-1, 5), candidates=there[:, 150:300].contiguous(),
                token_groups=groups, tally=data, num_lists=2,
            )  # fmt: skip
            owned.seen.zero_()
        for one, other in zip(got, want, strict=True):
            assert_bitwise(one.cpu(), other)
