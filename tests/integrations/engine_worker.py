# SPDX-License-Identifier: Apache-2.0
"""Compare an EngineHead over each process's shard of the rows with one over all rows, step by step.

test_engine_shard.py starts this.
"""

import itertools
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from compare import assert_bitwise
from parallel_worker import assert_agreed, assert_refused
from torch import Tensor

from microspec_kernels.engine import EngineHead, Settings, Shard

from .engine_reference import ROW_TOKENS, ROWS, V, hidden_of, weight_of


def shards(ranks: int) -> Iterator[list[tuple[int, int]]]:
    """Return [start, end) of each rank. In the second order the first rank's start is not 0."""
    edges = [ROWS * rank // ranks for rank in range(ranks + 1)]
    yield list(itertools.pairwise(edges))
    yield list(itertools.pairwise(edges))[::-1]
    yield [(0, ROWS), *[(ROWS, ROWS)] * (ranks - 1)]


class Communicator:
    """All-gathers as an engine's communicator does, and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, part: Tensor) -> Tensor:
        self.calls += 1
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part)
        return torch.cat(parts)


def every(total_rows: int, start: int, all_gather: Communicator | None = None) -> Shard:
    """Return a shard among all ranks."""
    assert dist.group.WORLD is not None
    return Shard(total_rows, start, dist.group.WORLD, all_gather)


def check(
    rank: int, layout: list[tuple[int, int]], num_groups: int, options: dict[str, Any]
) -> None:
    where = f"{layout} {num_groups} {options}"
    part = slice(*layout[rank])
    settings = Settings(capacity=12, **options)
    weight = weight_of(torch.float32, settings.slab_dtype, ROWS)
    weight[4, 1] = torch.nan  # all ranks know them, although only one has the row
    local_weight = weight[part].clone()
    rng = torch.Generator().manual_seed(6)
    bias = torch.randint(-2, 3, (ROWS,), generator=rng).float()
    same: dict[str, Any] = {
        "num_groups": num_groups,
        "target_vocab_size": V,
        "row_tokens": ROW_TOKENS,
        "softcap": 30.0,
    }
    whole = EngineHead(weight, settings, bias=bias, **same)
    head = EngineHead(
        local_weight, settings, bias=bias[part], shard=every(ROWS, part.start), **same
    )
    for step in range(8):
        tokens = torch.randint(-1, V, (9,), generator=rng)
        which = torch.randint(-1, num_groups, (9,), generator=rng) if num_groups > 1 else None
        rows = torch.randint(-1, num_groups, (6,), generator=rng) if num_groups > 1 else None
        hidden = hidden_of(rng, 6, torch.float32)
        for each in (whole, head):
            each.observe(tokens, which)
            if step == 4:
                each.begin([num_groups - 1], [tokens])
        if step == 6:
            weight.copy_(weight_of(torch.float32, settings.slab_dtype, ROWS, seed=3))
            local_weight.copy_(weight[part])
            whole.reload()
            head.reload()
        assert_agreed(head.topk(hidden, 5, rows), whole.topk(hidden, 5, rows), where)
        assert torch.equal(head.argmax(hidden, rows), whole.argmax(hidden, rows)), where
        if num_groups == 1:
            slots = [each.slot_logits(hidden) for each in (head, whole)]
            assert_bitwise(*slots, f"{where}: slot_logits")
        assert torch.equal(head.slot_tokens(), whole.slot_tokens()), where
        assert head.stats() == whole.stats(), where


def check_special_logits(rank: int, layout: list[tuple[int, int]], options: dict[str, Any]) -> None:
    """Ties, NaN and infinities, with vocabularies of which some ranks hold no token."""
    where, part = f"{layout} {options}", slice(*layout[rank])
    rng = torch.Generator().manual_seed(9)
    weight = torch.randint(-1, 2, (ROWS, 3), generator=rng).float()
    local_weight, communicator = weight[part].clone(), Communicator()
    settings = Settings(capacity=3, learn=False, **options)
    whole = EngineHead(weight, settings)
    head = EngineHead(local_weight, settings, shard=every(ROWS, part.start, communicator))
    for name, value in (("nan", torch.nan), ("inf", torch.inf), ("-inf", -torch.inf)):
        # The heads were made with whole rows, and have not dropped these.
        weight[torch.rand(ROWS, generator=rng) < 0.4, 0] = value
        local_weight.copy_(weight[part])
        whole.reload()
        head.reload()
        for step in range(12):
            tokens = torch.randint(0, ROWS, (step % 4,), generator=rng)
            hidden = torch.randint(-1, 2, (40, 3), generator=rng).float()
            hidden[3], hidden[7, 1] = torch.nan, torch.inf
            for each in (whole, head):
                each.observe(tokens)
            calls, what = communicator.calls, f"{where}, {name}, step {step}"
            found = head.argmax(hidden)
            assert communicator.calls == calls + 1
            assert torch.equal(found, whole.argmax(hidden)), what
            assert_agreed(head.topk(hidden, 4), whole.topk(hidden, 4), what)
            assert communicator.calls == calls + 2
            if step % 6 == 5:
                for each in (whole, head):
                    each.reset()
    no_rows = torch.empty(0, 3)
    assert head.argmax(no_rows).shape == (0,)


def check_file(rank: int, ranks: int, path: str) -> None:
    """One rank writes the file, and all begin with it."""
    part = slice(ROWS * rank // ranks, ROWS * (rank + 1) // ranks)
    settings = Settings(capacity=12, target_top_k=0, learned_file=path)

    def head() -> EngineHead:
        return EngineHead(
            weight_of(torch.float32, rows=ROWS)[part],
            settings,
            num_groups=2,
            target_vocab_size=V,
            row_tokens=ROW_TOKENS,
            shard=every(ROWS, part.start),
        )

    first = head()
    first.begin([1], [ROW_TOKENS[:3]])
    first.observe(ROW_TOKENS[-12:], torch.ones(12, dtype=torch.int64))
    assert first.learning is not None
    assert (first.learning._file is not None) == (rank == 0)
    if first.learning._file is not None:
        first.learning._file.save()
    dist.barrier()
    assert set(head().slot_tokens()[0].tolist()) == set(ROW_TOKENS[-12:].tolist())


def run(rank: int, ranks: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=60),
    )
    for layout, groups in itertools.product(shards(ranks), (1, 3)):
        for options in (
            {"mode": "indexed"},
            {"mode": "packed", "learn": False},
            {"mode": "packed", "slab_dtype": "int8"},
        ):
            check(rank, layout, groups, options)
    for layout, mode in itertools.product(shards(ranks), ("indexed", "packed")):
        check_special_logits(rank, layout, {"mode": mode})
    check_file(rank, ranks, f"{store}.safetensors")
    shard = every(ROWS + 1, ROWS * rank // ranks)
    local_weight = weight_of(torch.float32, rows=ROWS)[shard.start : ROWS * (rank + 1) // ranks]
    message = f"expected shards that have each row of [0, {ROWS + 1}) once, got [0, "
    assert_refused(message, EngineHead, local_weight, Settings(), shard=shard)
    sys.stdout.write(f"{dist.get_world_size()}\n")  # one piece, unlike print
    dist.destroy_process_group()


if __name__ == "__main__":
    count, path = int(sys.argv[1]), sys.argv[2]
    # Fork, so that PyTorch is imported once.
    mp.start_processes(run, (count, path), count, start_method="fork")
