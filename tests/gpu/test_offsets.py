# SPDX-License-Identifier: Apache-2.0
"""Tensors past 2^31 elements and 2^32 bytes: a truncated offset reads another row, or poison."""

import pytest
import torch
from compare import assert_bitwise
from generators import PINNED, QUANTISED, integers, poison, row_indexed, vocab_state
from torch import Tensor

from microspec_kernels import (
    Tally,
    gather_rows_,
    sparse_head,
    sparse_logits,
    tree_cut,
    tree_grow_,
    vocab_count_,
    vocab_observe_,
    vocab_refill_,
    vocab_update_,
)

DIM, VOCAB_SIZE = 4096, 2**20 + 70_000
# Tokens past 2^31 and 2^32 elements, on both sides of 2^31 bytes, and at the ends.
TOKENS = [VOCAB_SIZE - 1, 2**19 + 5, 2**20 + 5, 3, 2**19 - 1, 2**18 + 1, 0, 2**20 - 1]
WEIGHTS = [torch.bfloat16, *QUANTISED]
RESULT_ROWS = 8_000  # of 300,000 logits each
TOKEN_SLOTS = 2**27  # V, of each of 17 groups
MASK_NODES = 46_400  # 2^31 entries of one tree's mask
POOLS, POOL_PLACES = 2**15 + 1, 2**16  # 2^31 places


def need(gigabytes: float) -> None:
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of device memory, {free:.0f} are free")


def small_rows(count: int, dtype: torch.dtype) -> Tensor:
    return integers(torch.Generator().manual_seed(0), (count, DIM), dtype).cuda()


def big_weight(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a weight of poison, except the rows of TOKENS, and those rows."""
    weight = torch.empty(VOCAB_SIZE, DIM, dtype=dtype, device="cuda")
    for chunk in weight.split(2**18):
        row_indexed(chunk).fill_(row_indexed(poison((1,), dtype))[0])
    rows = small_rows(len(TOKENS), dtype)
    row_indexed(weight)[torch.tensor(TOKENS, device="cuda")] = row_indexed(rows)
    return weight, rows


def some_hidden(m: int) -> Tensor:
    return integers(torch.Generator().manual_seed(m), (m, DIM), torch.bfloat16).cuda()


def exact(hidden: Tensor, rows: Tensor) -> Tensor:
    return (hidden.double() @ rows.to(torch.float32).double().T).float()


@pytest.mark.parametrize("m", [1, 4, 10, 60])
@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_indexed_head(dtype: torch.dtype, m: int) -> None:
    need(14)
    weight, rows = big_weight(dtype)
    scale = torch.ones(VOCAB_SIZE, device="cuda") if dtype in QUANTISED else None
    ids = torch.full((50,), -1, dtype=torch.int32, device="cuda")
    ids[3 : 3 + len(TOKENS)] = torch.tensor(TOKENS, dtype=torch.int32, device="cuda")
    hidden = some_hidden(m)
    z = sparse_logits(hidden, weight, ids, weight_scale=scale)
    assert_bitwise(z[:, ids >= 0], exact(hidden, rows))
    logits, _, _ = sparse_head(hidden, weight, ids, len(TOKENS), weight_scale=scale)
    assert_bitwise(logits, exact(hidden, rows).sort(descending=True).values)


@pytest.mark.parametrize("slab_dtype", WEIGHTS, ids=str)
def test_gather_from_a_big_weight(slab_dtype: torch.dtype) -> None:
    need(14)
    weight, rows = big_weight(torch.bfloat16)
    tokens = torch.tensor(TOKENS, dtype=torch.int32, device="cuda")
    slab = torch.zeros(len(TOKENS), DIM, dtype=slab_dtype, device="cuda")
    held = torch.full_like(tokens, -1)
    scale = torch.zeros(len(TOKENS), device="cuda") if slab_dtype in QUANTISED else None
    gather_rows_(slab, held, weight, tokens, slab_scale=scale)
    got = slab.float() if scale is None else slab.float() * scale[:, None]
    # Values of -3 to 3 over a step of 3/127 or 3/448: the error is at most a sixteenth, so rows
    # stay distinct.
    assert bool(((got - rows.float()).abs() <= rows.float().abs() / 16 + 3 / 254).all())


@pytest.mark.parametrize("m", [2, 12])
@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_slab_beyond_2_to_31_elements(dtype: torch.dtype, m: int) -> None:
    """Two groups of 300,000 slots: the gather fills the far slots, the head reads them."""
    need(14)
    capacity = 300_000
    slab = torch.empty(2, capacity, DIM, dtype=dtype, device="cuda")
    row_indexed(slab).fill_(row_indexed(poison((1,), dtype))[0])
    rows = small_rows(5, dtype)
    slots = torch.tensor([0, capacity - 1, 0, 2**19 - capacity + 9, capacity - 1], device="cuda")
    groups = torch.tensor([0, 0, 1, 1, 1], device="cuda")
    ids = torch.full((2, capacity), -1, dtype=torch.int32, device="cuda")
    ids[groups, slots] = torch.arange(5, dtype=torch.int32, device="cuda")
    held = torch.full_like(ids, -1)
    quantised = dtype in QUANTISED
    weight_scale = torch.ones(5, device="cuda") if quantised else None
    scale = torch.full((2, capacity), float("nan"), device="cuda") if quantised else None
    gather_rows_(slab, held, rows, ids, slab_scale=scale, weight_scale=weight_scale)
    assert_bitwise(held, ids)
    hidden = some_hidden(m)
    group_ids = torch.tensor([1, 0] * (m // 2), device="cuda")
    logits, top, _ = sparse_head(
        hidden, slab, ids, 3, packed=True, group_ids=group_ids, weight_scale=scale
    )
    z = exact(hidden, rows)
    want = z[0::2, 2:].sort(descending=True).values
    assert_bitwise(logits[0::2], want)
    assert_bitwise(logits[1::2, :2], z[1::2, :2].sort(descending=True).values)
    assert top[1::2, 2].eq(-1).all()


def test_hidden_and_results_beyond_2_to_31_elements() -> None:
    """Hidden has 600,000 rows; logits are 8,000 × 300,000."""
    need(30)
    m = 600_000
    weight = small_rows(16, torch.bfloat16)
    ids = torch.arange(16, dtype=torch.int32, device="cuda")
    hidden = some_hidden(300).repeat(m // 300, 1)
    want = exact(hidden[:300], weight).repeat(m // 300, 1)
    assert_bitwise(sparse_logits(hidden, weight, ids), want)
    del hidden, want

    capacity, m, dim = 300_000, RESULT_ROWS, 64
    rng = torch.Generator().manual_seed(0)
    weight = integers(rng, (1000, dim), torch.bfloat16).cuda()
    hidden = integers(rng, (100, dim), torch.bfloat16).cuda().repeat(m // 100, 1)
    ids = torch.arange(capacity, device="cuda").remainder(1000).int()
    z = sparse_logits(hidden, weight, ids)
    one = exact(hidden[:100], weight).repeat(1, capacity // 1000)
    for first in (0, m // 2, m - 100):
        assert_bitwise(z[first : first + 100], one, f"rows from {first}")


def test_counts_beyond_2_to_31_entries() -> None:
    """The last list's counts lie behind 2^31 others, the last request's bits behind 2^26 words."""
    need(14)
    lists, size = 17, TOKEN_SLOTS
    counts = torch.zeros(lists, size, dtype=torch.int32, device="cuda")
    seen = torch.zeros(lists, size // 32, dtype=torch.int32, device="cuda")
    tokens = torch.tensor([size - 1, 5, size - 1, 64], device="cuda").repeat(lists, 1)
    vocab_count_(counts, seen, tokens, request_lists=torch.arange(lists, device="cuda"))
    for which in (0, 1, lists - 1):
        assert counts[which, tokens[0]].tolist() == [1] * 4
        assert int(counts[which].sum()) == 3
    ranks = torch.arange(size, dtype=torch.int32, device="cuda")
    state = [t.cuda() for t in vocab_state(size, 4).tensors()]
    vocab_refill_(*state, counts, ranks, torch.tensor([lists - 1], device="cuda"), pinned=1)
    assert state[0].tolist() == [[0, 5, 64, size - 1]]
    assert state[1].tolist() == [[0, PINNED, 2, 1]]


def test_token_slots_beyond_2_to_31_entries() -> None:
    need(20)
    groups, size = 17, TOKEN_SLOTS
    slots = torch.empty(groups, size, dtype=torch.int32, device="cuda").fill_(-1)
    tokens = torch.tensor([[size - 1, 5, 9], [9, size - 2, 5], [7, size - 1, 8]], device="cuda")
    tokens = tokens.repeat(6, 1)[:groups]
    ids = torch.full((groups, 2), -1, dtype=torch.int32, device="cuda")
    stamps = torch.full((groups, 2), -1, dtype=torch.int64, device="cuda")
    clock = torch.zeros(groups, dtype=torch.int64, device="cuda")
    vocab_update_(ids, stamps, slots, clock, tokens)
    want = [[5, 9], [size - 2, 5], [size - 1, 8]]
    assert ids.tolist() == [want[group % 3] for group in range(groups)]
    tally = Tally(size, num_requests=groups, device="cuda")
    owners = torch.arange(groups, device="cuda").repeat_interleave(3)
    vocab_observe_(ids, stamps, slots, clock, tokens, token_groups=owners, tally=tally.data)
    assert tally.verdicts.tolist() == [[2] * groups, [1] * groups], "the first is gone"
    for group in (0, 1, groups - 2, groups - 1):
        assert slots[group, tokens[group]].tolist() == [-1, 0, 1]
        assert int((slots[group] >= 0).sum()) == 2


def test_an_ancestor_mask_beyond_2_to_31_entries() -> None:
    need(4)
    places, last = MASK_NODES - 1, MASK_NODES - 1
    ids = torch.arange(places, device="cuda")[None]
    above = torch.full_like(ids, -1)
    above[0, -1] = places - 2
    costs = torch.zeros(1, places, device="cuda")
    tokens, parents, depths, mask = tree_cut(ids[:, 0].contiguous(), ids, above, costs, places)
    assert tokens[0, 1:].equal(ids[0])
    assert parents.sum() == parents[0, last] == last - 1
    assert depths.sum() == last + 1
    assert mask[0, last].nonzero().flatten().tolist() == [0, last - 1, last]
    assert mask[0, last // 2].nonzero().flatten().tolist() == [0, last // 2]
    assert int(mask.sum()) == 2 * MASK_NODES, "each node and the root; three nodes of the last"


def test_pools_beyond_2_to_31_places() -> None:
    """The candidates are at the end of each pool."""
    need(50)
    shape, begin = (POOLS, POOL_PLACES), POOL_PLACES - 3
    pool = [torch.full(shape, -1, device="cuda") for _ in range(2)]
    pool.append(torch.full(shape, torch.inf, device="cuda"))
    logits = torch.tensor([[-2.0, -1.0, -3.0]], device="cuda").repeat(POOLS, 1)
    ids = torch.arange(3 * POOLS, device="cuda").view(POOLS, 3)
    level = (logits, ids, torch.zeros(POOLS, device="cuda"))
    frontier, tokens, rows = tree_grow_(*pool, *level, 2, begin=begin)
    assert frontier.equal(torch.tensor([[begin + 1, begin]], device="cuda").expand(POOLS, -1))
    assert tokens.equal(ids[:, [1, 0]]) and not rows.any()
    for text in (0, 1, POOLS - 1):
        assert pool[0][text, begin:].equal(ids[text])
        assert pool[2][text, begin:].tolist() == [2.0, 1.0, 3.0]
    nodes, parents, depths, _ = tree_cut(ids[:, 0].contiguous(), *pool, 2)
    assert nodes.equal(ids[:, [0, 0, 1]]) and not parents.any()
    assert depths.equal(torch.tensor([[0, 1, 1]], device="cuda").expand(POOLS, -1))
