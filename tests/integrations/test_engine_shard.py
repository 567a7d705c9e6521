# SPDX-License-Identifier: Apache-2.0
"""EngineHead under tensor parallelism, in 2 and 3 processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from microspec_kernels._shards import Merger, packed
from microspec_kernels.engine import EngineHead, Settings, Shard

from .launches import launched

TESTS = Path(__file__).parent.parent
needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


@contextmanager
def one_rank(**options: Any) -> Iterator[EngineHead]:
    """Make the head of the only rank of a group, with a communicator that launches one kernel."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = dist.group.WORLD
        assert group is not None
        shard = Shard(30, 0, group, lambda part: part.clone())
        yield EngineHead(torch.randn(30, 8), Settings(capacity=8, **options), shard=shard)
    finally:
        dist.destroy_process_group()


@needs_gloo
@pytest.mark.parametrize("mode", ["indexed", "packed"])
@pytest.mark.parametrize("rows", [1, 5])
def test_launches(mode: str, rows: int) -> None:
    """A draft step is four ops and one collective, here the clone."""
    head_op = "microspec::sparse_head"
    drafted = [head_op, "aten::cat", "aten::clone", "aten::index", head_op]
    observed = ["microspec::vocab_observe_", "aten::index"]
    hidden, tokens = torch.randn(rows, 8), torch.arange(4)
    with one_rank(mode=mode) as head:
        head.observe(tokens)
        assert launched(lambda: head.argmax(hidden)) == drafted
        sums = ["aten::_to_copy", "aten::logsumexp", "aten::_to_copy"]
        assert launched(lambda: head.topk(hidden, 4)) == drafted + sums
        gathered = ["microspec::gather_rows_"] if mode == "packed" else []
        assert launched(lambda: head.observe(tokens)) == observed + gathered


@pytest.mark.parametrize(
    ("k", "count", "ops"),
    [
        (1, 5, ["aten::index", "microspec::sparse_head"]),
        (4, 5, ["aten::clone", "aten::index", "microspec::sparse_head"]),
        (1, 6, ["aten::arange", "aten::index", "microspec::sparse_head"]),
    ],
    ids=["one", "tree", "more rows than constants"],
)
def test_launches_of_a_merge(k: int, count: int, ops: list[str]) -> None:
    """With several ranks, only a tree's candidates have to be copied."""
    shards = [(4, 9), (0, 4), (9, 13)]
    merger = Merger(shards, torch.device("cpu"), room=5)
    rng = torch.Generator().manual_seed(k)
    logits = torch.randint(-2, 3, (3, count, k), generator=rng).float().sort(-1, True).values
    rows = torch.arange(k).expand(3, count, k).contiguous()
    parts = torch.stack(
        [packed(*part) for part in zip(logits, rows, torch.zeros(3, count), strict=True)]
    )
    got: list[Tensor] = []
    assert launched(lambda: got.extend(merger.best(parts))) == ops
    tokens = torch.stack([rows[i] + start for i, (start, _) in enumerate(shards)])
    keys = torch.cat([*(100 * logits - tokens)], -1)
    best = keys.topk(k).indices
    assert torch.equal(got[1], torch.cat([*tokens], -1).gather(1, best))
    assert torch.equal(got[0], torch.cat([*logits], -1).gather(1, best))


@needs_gloo
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes(ranks: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "integrations.engine_worker", str(ranks), tmp_path / "store"]
    # The processes share one machine: they need no name resolution, and one core each is enough.
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    # Gloo of torch 2.10 writes lines there, too, and pieces of lines.
    results = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert results == [str(ranks)] * ranks
