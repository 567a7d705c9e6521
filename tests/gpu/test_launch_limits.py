# SPDX-License-Identifier: Apache-2.0
"""Calls whose arrays just fit this GPU's shared memory, or just do not."""

import torch
from compare import assert_bitwise
from generators import vocab_state

from microspec_kernels import gather_rows_, reference, sparse_head, vocab_update_

VOCAB = 60_000  # more than the slots of 4 bytes that fit any GPU
STEP = 8  # bytes between two sizes


def sizes(unit: int, used: int = 0) -> list[int]:
    """Return sizes, of ``unit`` bytes each, around 48 KB and around all that a block may have.

    A kernel's own declarations take up to 16 KB of that; ``used`` bytes are other arrays'.
    """
    most: int = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    around = [range(limit - (16 << 10), limit + 64, STEP) for limit in (48 << 10, most)]
    return sorted({(bytes_ - used) // unit for limits in around for bytes_ in limits})


def test_select(rng: torch.Generator) -> None:
    hidden = torch.randn(1, 16, generator=rng, device="cuda")
    weight = torch.randn(VOCAB, 16, generator=rng, device="cuda")
    ids = torch.randperm(VOCAB, generator=rng, device="cuda").int()
    for capacity in sizes(4):  # an order takes 4 bytes
        got = sparse_head(hidden, weight, ids[:capacity], 4)
        want = reference.sparse_head(hidden, weight, ids[:capacity], 4)
        assert torch.equal(got[1], want[1]), capacity


def test_update(rng: torch.Generator) -> None:
    tokens = torch.randint(0, VOCAB, (VOCAB,), generator=rng, device="cuda")
    # 16384 slots reach the limit of 163 KB. At 227 KB all that the kernel keeps there fits.
    for capacity in (3500, 8192, 12000, 16384):
        # The last uses are 4 bytes a slot, the newcomers 8 bytes each.
        lengths = [n for n in sizes(8, 4 * capacity) if 0 < n <= capacity]
        for length in lengths[:: max(1, len(lengths) // 200)] + lengths[-1:]:
            state = vocab_state(VOCAB, capacity)
            want = state.copy()
            on_device = [tensor.cuda() for tensor in state.tensors()]
            vocab_update_(*on_device, tokens[:length])
            vocab_update_(*want.tensors(), tokens[:length].cpu())
            assert_bitwise(on_device[0].cpu(), want.active_ids, f"K = {capacity}, N = {length}")


def test_quantising_gather(rng: torch.Generator) -> None:
    ids = torch.tensor([1, 0], dtype=torch.int32).cuda()
    longest = max(sizes(4))
    weight = torch.randn(2, longest, generator=rng, device="cuda")
    for dim in sizes(4)[::16]:
        slab = torch.zeros(2, dim, dtype=torch.int8).cuda()
        slab_ids, scale = torch.full_like(ids, -1), torch.zeros(2).cuda()
        gather_rows_(slab, slab_ids, weight[:, :dim], ids, slab_scale=scale)
        want = reference.quantise_rows(weight[:, :dim].cpu()[[1, 0]], torch.int8)
        assert_bitwise(slab.cpu(), want[0], f"D = {dim}")
        assert_bitwise(scale.cpu(), want[1], f"D = {dim}")
