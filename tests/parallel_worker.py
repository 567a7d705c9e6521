# SPDX-License-Identifier: Apache-2.0
"""Compare the vocab-parallel head with sparse_head; test_parallel.py starts this.

Each of several processes has a shard of the LM head. Every rank compares its results with
sparse_head over the whole weight and with the results of all other ranks.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from compare import EPS, assert_bitwise, assert_close
from generators import FLOATS, QUANTISED, HeadCase, head_case, integers, normal
from torch import Tensor

from microspec_kernels import (
    ActiveVocab,
    SparseHead,
    SparseLMHead,
    parallel_sparse_head,
    sparse_head,
)
from microspec_kernels._checks import MAX_TOP_K

V = 50
MODES: tuple[dict[str, Any], ...] = ({}, {"mode": "packed"})
TWO_BUFFERS: dict[str, Any] = {"mode": "packed", "buffers": 2}


def shards(ranks: int) -> Iterator[list[tuple[int, int]]]:
    """Yield layouts of [start, end) for each rank."""
    edges = [V * rank // ranks for rank in range(ranks + 1)]
    yield list(itertools.pairwise(edges))
    yield list(itertools.pairwise(edges))[::-1]
    yield [(0, 1), (1, V), *[(V, V)] * (ranks - 2)]
    yield [*[(0, 0)] * (ranks - 1), (0, V)]  # all active tokens on one rank


def rounding_of(logsumexp: Tensor) -> float:
    """Return the allowed error: rounded fp32 parts, and their sum, rounded again."""
    finite = logsumexp[logsumexp.isfinite()].abs()
    return 6 * EPS * (1.0 + float(finite.max() if len(finite) else 0.0))


def assert_agreed(result: tuple[Tensor, ...], want: tuple[Tensor, ...], what: str) -> None:
    """Assert that all ranks have the same bits, and the result of one rank."""
    for name, got, expected in zip(("logits", "token_ids", "logsumexp"), result, want, strict=True):
        for rank in range(dist.get_world_size()):
            theirs = got.clone()
            dist.broadcast(theirs, src=rank)
            bits = {4: torch.int32, 8: torch.int64}[got.element_size()]
            assert torch.equal(theirs.view(bits), got.view(bits)), f"{what}: {name} of rank {rank}"
        if name == "logsumexp":
            assert_close(got, expected, rounding_of(expected), f"{what}: {name}")
        else:
            assert_bitwise(got, expected, f"{what}: {name}")


def assert_refused(message: str, call: Callable[..., object], *args: Any, **options: Any) -> None:
    try:
        call(*args, **options)
    except ValueError as error:
        assert message in str(error), str(error)
    else:
        raise AssertionError(f"expected ValueError: {message}")


def parallel(case: HeadCase, start: int, end: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    options = {name: value for name, value in case.options().items() if name != "packed"}
    for name in ("weight_scale", "bias"):
        options[name] = None if options[name] is None else options[name][start:end]
    weight = case.weight[start:end]
    return parallel_sparse_head(case.hidden, weight, case.active_ids, k, start=start, **options)


def cases() -> Iterator[tuple[str, HeadCase, int]]:
    for dtype in FLOATS:
        for weight_dtype in (dtype, *QUANTISED):
            options: dict[str, Any] = {"dtype": dtype, "weight_dtype": weight_dtype, "bias": dtype}
            yield f"{weight_dtype} rows", head_case(1, m=7, softcap=30.0, **options), 9
            yield f"ties of {weight_dtype} rows", head_case(2, dim=2, exact=True, **options), 20
    yield "one row", head_case(3, m=1, dtype=torch.bfloat16), 5
    yield "no row", head_case(3, m=0), 5
    yield "groups", head_case(4, m=9, num_groups=3, padding=True, logit_scale=0.5), 10
    yield "k beyond all", head_case(5, active=6), MAX_TOP_K
    yield "nothing active", head_case(6, active=0), 4
    case = head_case(7)
    weight = case.weight.clone()
    weight[case.active_ids[case.active_ids >= 0][::5].long()] = float("nan")
    yield "NaN", case.changed(weight=weight), 16


def check_op(rank: int, ranks: int) -> None:
    for layout in shards(ranks):
        for name, case, k in cases():
            want = sparse_head(*case.tensors(), k, **case.options())
            assert_agreed(parallel(case, *layout[rank], k), want, f"{name}, {layout}")


def check_nobodys_tokens(rank: int, ranks: int) -> None:
    """Check that ids of no rank are empty slots: beyond V, or in an engine's padding."""
    case = head_case(8)
    want = sparse_head(*case.tensors(), 9, **case.options())
    strange = torch.tensor([V, V + 13, 2147480000, 2**31 - 1, -(2**31)], dtype=torch.int32)
    ids = case.active_ids.clone()
    empty = (ids < 0).nonzero().flatten()
    ids[empty] = strange[: len(empty)]
    assert len(empty) == len(strange)
    layout = next(shards(ranks))
    assert_agreed(parallel(case.changed(active_ids=ids), *layout[rank], 9), want, "nobody's")


def check_unlike_hidden(rank: int, ranks: int) -> None:
    """Check that ranks with different hidden still agree with each other."""
    case = head_case(9, exact=True)
    start, end = next(shards(ranks))[rank]
    result = parallel(case.changed(hidden=case.hidden + rank), start, end, 7)
    first = [part.clone() for part in result]
    for part in first:
        dist.broadcast(part, src=0)
    assert_agreed(result, (*first,), "unlike hidden")


def check_module(rank: int, ranks: int) -> None:
    """Check indexed and packed modules over many steps with evictions against a SparseHead."""
    for layout in shards(ranks):
        part = slice(*layout[rank])
        for weight_dtype, options in (
            (torch.float32, {}),
            (torch.float32, {"mode": "packed", "buffers": 2}),
            (torch.bfloat16, {"mode": "packed", "slab_dtype": torch.int8}),
            (torch.float8_e4m3fn, {"mode": "packed"}),
        ):
            rng = torch.Generator().manual_seed(10)
            dtype = torch.bfloat16 if weight_dtype in QUANTISED else weight_dtype
            weight, bias = normal(rng, (V, 24), weight_dtype), normal(rng, (V,), dtype)
            scale = torch.rand(V, generator=rng) if weight_dtype in QUANTISED else None
            whole = SparseHead(
                weight, ActiveVocab(V, 16, num_groups=2), weight_scale=scale, bias=bias, **options
            )
            head = SparseHead(
                weight[part],
                ActiveVocab(V, 16, num_groups=2),
                process_group=dist.group.WORLD,
                start=part.start,
                weight_scale=None if scale is None else scale[part],
                bias=bias[part],
                **options,
            )
            for shape in ((6,), (2, 3), (), (0, 2), (1, 1, 4)):
                tokens = torch.randint(0, V, (2, 9), generator=rng)
                whole.observe(tokens)
                head.observe(tokens)
                hidden = normal(rng, (*shape, 24), dtype)
                groups = torch.randint(-1, 2, shape, generator=rng)
                want = whole(hidden, 5, groups)
                assert_agreed(
                    head(hidden, 5, groups), want, f"module {weight_dtype} {options} {layout}"
                )
                assert torch.equal(head.vocab.ids, whole.vocab.ids)


def check_logits(rank: int, ranks: int) -> None:
    """Check the logits of every slot, NaN and infinities included, and the dense head over them."""
    rng = torch.Generator().manual_seed(12)
    weight, hidden = integers(rng, (V, 8), torch.float32), integers(rng, (5, 8), torch.float32)
    weight[::7, 0], weight[3::7, 1] = float("nan"), float("inf")
    row_groups = torch.tensor([0, 1, -1, 1, 0])
    for layout in shards(ranks):
        part = slice(*layout[rank])
        for kind, options in itertools.product((SparseHead, SparseLMHead), (*MODES, TWO_BUFFERS)):
            vocabs = [ActiveVocab(V, 40, num_groups=2) for _ in range(2)]
            whole = kind(weight, vocabs[0], **options)
            split = {"process_group": dist.group.WORLD, "start": part.start, **options}
            head = kind(weight[part], vocabs[1], **split)
            tokens = torch.randint(0, V, (2, 45), generator=rng)
            later = torch.randint(0, V, (2, 20), generator=rng)
            for update in (
                lambda each, tokens=tokens: each.observe(tokens),
                # Without a refresh: a slab keeps the rows and the tokens of the last one.
                lambda each, tokens=later: each.vocab.update(tokens),
            ):
                update(whole)
                update(head)
                want, got = (each.logits(hidden, row_groups) for each in (whole, head))
                assert want[0].isnan().any() and want[0].isinf().any()
                assert_bitwise(got[0], want[0], f"{kind.__name__} {options} {layout}")
                assert torch.equal(got[1], want[1])
                if kind is SparseLMHead:
                    dense = [each(hidden, row_groups) for each in (head, whole)]
                    assert_bitwise(*dense, f"{options} {layout}")


def check_groups_of_ranks(rank: int, ranks: int) -> None:
    """Check two process groups side by side, with one head each."""
    half = ranks // 2
    process_groups = [dist.new_group(list(range(half))), dist.new_group(list(range(half, ranks)))]
    half_index = rank // half
    rng = torch.Generator().manual_seed(half_index)
    weight, hidden = integers(rng, (V, 8), torch.float32), integers(rng, (3, 8), torch.float32)
    ids = torch.randperm(V, generator=rng)[:20].int()
    part = slice(*next(shards(half))[rank % half] if half > 1 else (0, V))
    call: dict[str, Any] = {
        "k": 6,
        "start": part.start,
        "process_group": process_groups[half_index],
    }
    got = parallel_sparse_head(hidden, weight[part], ids, **call)
    for theirs, want in zip(got[:2], sparse_head(hidden, weight, ids, 6)[:2], strict=True):
        assert_bitwise(theirs, want)
    call["process_group"] = process_groups[1 - half_index]
    message = "process_group: expected a group that contains this rank"
    assert_refused(message, parallel_sparse_head, hidden, weight[part], ids, **call)
    options = {name: call[name] for name in ("process_group", "start")}
    assert_refused(message, SparseHead, weight[part], ActiveVocab(V, 4), **options)


def check_ranges(rank: int, ranks: int) -> None:
    """Check that every rank raises an error for shards that overlap or leave a gap."""
    weight, vocab = torch.zeros(V + 1, 8), ActiveVocab(V, 4)
    start, end = next(shards(ranks))[rank]
    last = rank == ranks - 1
    for lower, upper in ((start - last, end), (start + last, end), (start, end - last)):
        message = "start: expected shards that have each row of [0, 50) once, got [0, "
        shard, options = weight[lower:upper], {"process_group": dist.group.WORLD, "start": lower}
        assert_refused(message, SparseHead, shard, vocab, **options)


def run(rank: int, ranks: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=60),
    )
    check_op(rank, ranks)
    check_nobodys_tokens(rank, ranks)
    check_unlike_hidden(rank, ranks)
    check_module(rank, ranks)
    check_logits(rank, ranks)
    check_groups_of_ranks(rank, ranks)
    check_ranges(rank, ranks)
    sys.stdout.write(f"{dist.get_world_size()}\n")  # one piece, unlike print
    dist.destroy_process_group()


if __name__ == "__main__":
    count, path = int(sys.argv[1]), sys.argv[2]
    # Fork, so that PyTorch is imported once.
    mp.start_processes(run, (count, path), count, start_method="fork")
