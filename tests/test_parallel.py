# SPDX-License-Identifier: Apache-2.0
"""The vocab-parallel head: shard by shard in this process, and in 2 and 4 processes."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from backends_under_test import COMPILED
from compare import assert_bitwise, assert_close, exact_topk, ids_by_row, logsumexp64
from generators import HeadCase, head_case, head_cases
from hypothesis import given
from hypothesis import strategies as st
from parallel_worker import rounding_of
from torch import Tensor

from microspec_kernels import (
    ActiveVocab,
    SparseHead,
    parallel_sparse_head,
    sparse_head,
    sparse_logits,
)
from microspec_kernels._shards import Merger, check_ranges, local_ids, logsumexp_of, packed
from microspec_kernels.parallel import check_shards

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)
NOT_A_GROUP = cast(Any, SimpleNamespace(rank=0))
V = 60  # at least that of any head_cases()


def shard_of(case: HeadCase, start: int, end: int) -> HeadCase:
    """Return sparse_head's arguments on the rank that holds tokens start to end - 1."""
    part = slice(start, end)
    changes: dict[str, Any] = {"active_ids": local_ids(case.active_ids, start, end - start)}
    if case.bias is not None:
        changes["bias"] = case.bias[part]
    if not case.packed:
        scale = case.weight_scale
        changes["weight"] = case.weight[part]
        changes["weight_scale"] = None if scale is None else scale[part]
    return case.changed(**changes)


def over_shards(case: HeadCase, edges: list[int], order: list[int], k: int) -> tuple[Tensor, ...]:
    """Run sparse_head shard by shard and merge; ``order`` gives each rank's shard."""
    every = list(zip([0, *edges], [*edges, V], strict=True))
    shards, parts = [every[i] for i in order], []
    for start, end in shards:
        shard = shard_of(case, start, end)
        parts.append(packed(*sparse_head(*shard.tensors(), k, **shard.options())))
    if not case.hidden.size(0):
        return sparse_head(*case.tensors(), k, **case.options())
    return merged(parts, shards)


def merged(parts: list[Tensor], shards: list[tuple[int, int]] | None = None) -> tuple[Tensor, ...]:
    """Merge the packed results of ranks with these shards, or with ids that are tokens."""
    every = torch.stack(parts)
    return *Merger(shards, every.device).best(every), logsumexp_of(every)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Draw up to five shards of V, some of them empty, and their order."""
    edges = sorted(draw(st.lists(st.integers(0, V), max_size=4)))
    return edges, draw(st.permutations(range(len(edges) + 1)))


def assert_one_ranks(got: tuple[Tensor, ...], case: HeadCase, k: int) -> None:
    want = sparse_head(*case.tensors(), k, **case.options())
    assert_bitwise(got[0], want[0], "logits")
    assert_bitwise(got[1], want[1], "token_ids")
    exact = logsumexp64(sparse_logits(*case.tensors(), **case.options()))
    assert_close(got[2], exact, rounding_of(exact), "logsumexp")


@pytest.mark.backends(*COMPILED)
@given(case=st.one_of(head_cases(), head_cases(exact=True)), cuts=cuts(), k=st.integers(1, 45))
def test_shards_equal_the_whole(case: HeadCase, cuts: tuple[list[int], list[int]], k: int) -> None:
    assert_one_ranks(over_shards(case, *cuts, k), case, k)


SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0, 3e38, 1e-45)


@given(values=st.lists(st.sampled_from(SPECIAL), max_size=V), cuts=cuts(), k=st.integers(1, 70))
def test_special_logits(values: list[float], cuts: tuple[list[int], list[int]], k: int) -> None:
    """Logits are ties, two zeros, infinities and NaN; NaN is last, and its logsumexp NaN."""
    weight = torch.tensor(values + [7.0] * (V - len(values)))[:, None]
    ids = torch.arange(len(values), dtype=torch.int32)
    case = HeadCase(torch.tensor([[1.0], [-1.0]]), weight, ids)
    got = over_shards(case, *cuts, k)
    assert_one_ranks(got, case, k)
    want = exact_topk(sparse_logits(*case.tensors()), ids_by_row(case), k)
    assert_bitwise(got[1], want[1], "token_ids")
    assert torch.equal(got[2].isnan(), weight[ids.long()].isnan().any().expand(2))


def test_local_ids() -> None:
    lowest, highest = -(2**31), 2**31 - 1
    ids = torch.tensor([[4, 5, -1, 9], [10, highest, 0, lowest]], dtype=torch.int32)
    assert local_ids(ids, 5, 5).tolist() == [[-1, 0, -1, 4], [-1, -1, -1, -1]]
    assert local_ids(ids, 0, 5).tolist() == [[4, -1, -1, -1], [-1, -1, 0, -1]]
    assert local_ids(ids, 5, 0).eq(-1).all()
    assert local_ids(ids, highest, 0).dtype == torch.int32


def test_tokens_of_the_last_row() -> None:
    """The largest possible token survives the all-gather."""
    top = torch.ones(1, 1), torch.full((1, 1), 2**31 - 2), torch.ones(1)
    token_ids = merged([packed(*top)])[1]
    assert token_ids.tolist() == [[2**31 - 2]]


def test_zeros_are_equal() -> None:
    """If a backend keeps the sign of zero, it must not decide a tie."""
    parts = [
        packed(torch.tensor([[z]]), torch.tensor([[token]]), torch.zeros(1))
        for z, token in ((0.0, 3), (-0.0, 1))
    ]
    assert merged(parts)[1].tolist() == [[1]]


def test_logsumexp_is_rounded_once() -> None:
    values = 20 * torch.randn(8, 500, generator=torch.Generator().manual_seed(1))
    top = torch.zeros(500, 1), torch.zeros(500, 1, dtype=torch.int64)
    got = merged([packed(*top, value) for value in values])[2]
    want = [math.log(math.fsum(map(math.exp, column))) for column in values.T.tolist()]
    assert_bitwise(got, torch.tensor(want, dtype=torch.float64).float())


@pytest.mark.parametrize(
    ("start", "kind", "got"),
    [(-1, ValueError, "-1"), (2**31 - 50, ValueError, "2147483598"), (0.0, TypeError, "float")],
)
def test_start(start: Any, kind: type[Exception], got: str) -> None:
    case = head_case(1)
    with pytest.raises(kind, match=rf"start: expected .*, got {re.escape(got)}$"):
        parallel_sparse_head(*case.tensors(), 3, start=start)
    with pytest.raises(kind, match=rf"start: expected .*, got {re.escape(got)}$"):
        check_shards(50, start, 50, None, torch.device("cpu"))


def test_start_without_a_process_group() -> None:
    with pytest.raises(ValueError, match=r"^SparseHead: start: expected 0 without .*, got 10$"):
        SparseHead(head_case(1).weight, ActiveVocab(50, 4), start=10)


def test_torch_distributed_not_initialised() -> None:
    message = "process_group: expected an initialised group .*, got none"
    with pytest.raises(ValueError, match=message):
        parallel_sparse_head(*head_case(1).tensors(), 3, start=0)
    with pytest.raises(ValueError, match=message):
        SparseHead(head_case(1).weight, ActiveVocab(50, 4), process_group=NOT_A_GROUP)


@needs_gloo
def test_process_groups_of_other_kinds() -> None:
    """A name, and an object with ranks of its own, as a DeviceMesh or an engine's group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        case, message = (
            head_case(1),
            "process_group: expected a torch.distributed.ProcessGroup, got ",
        )
        with pytest.raises(TypeError, match=message + "str$"):
            parallel_sparse_head(*case.tensors(), 3, start=0, process_group=cast(Any, "tp"))
        with pytest.raises(TypeError, match=message + "SimpleNamespace$"):
            SparseHead(case.weight, ActiveVocab(50, 4), process_group=NOT_A_GROUP)
        with pytest.raises(
            ValueError, match=r"process_group: expected a group that contains this rank"
        ):
            not_ours = cast(Any, dist.GroupMember.NON_GROUP_MEMBER)
            SparseHead(case.weight, ActiveVocab(50, 4), process_group=not_ours)
        SparseHead(case.weight, ActiveVocab(50, 4), process_group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "ranges", [[(0, 9)], [(5, 9), (0, 5)], [(0, 0), (0, 9), (4, 4)], [(0, 3), (7, 9), (3, 7)]]
)
def test_ranges(ranges: list[tuple[int, int]]) -> None:
    check_ranges([list(pair) for pair in ranges], 9)


@pytest.mark.parametrize(
    "ranges",
    [[(0, 8)], [(1, 9)], [(0, 10)], [(0, 4), (5, 9)], [(0, 5), (4, 9)], [(0, 9), (0, 9)], [(0, 0)]],
)
def test_bad_ranges(ranges: list[tuple[int, int]]) -> None:
    got = re.escape(", ".join(f"[{start}, {end})" for start, end in ranges))
    with pytest.raises(ValueError, match=rf"start: expected .*\[0, 9\) once, got {got}$"):
        check_ranges([list(pair) for pair in ranges], 9)


@needs_gloo
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes(ranks: int, tmp_path: Path) -> None:
    worker = Path(__file__).with_name("parallel_worker.py")
    command = [sys.executable, str(worker), str(ranks), str(tmp_path / "store")]
    # The processes share one machine: they need no name resolution, and one core each is enough.
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    assert "FutureWarning" not in done.stderr, done.stderr
    # Gloo of torch 2.10 writes lines there, too, and pieces of lines.
    results = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert results == [str(ranks)] * ranks
