# SPDX-License-Identifier: Apache-2.0
"""Randomly delayed work on two streams: only the promised order may matter."""

import random

import pytest
import torch
from torch import Tensor

from microspec_kernels import ActiveVocab, WeightSlab, sparse_head

from .cases import MODELS, check_head, expected, real_case
from .lockstep import BEST, CAPACITY, PINNED, ROWS, VOCAB_SIZE, Lockstep

SECOND = 1_500_000_000  # in cycles, approximately
STEPS = 3000


def delay(rng: random.Random) -> None:
    """Delay the current stream: mostly by nothing, at times by microseconds, seldom by 0.5 ms."""
    length = rng.choice((0, 0, 0, 0, 2_000, 20_000, 20_000, 700_000))
    if length:
        torch.cuda._sleep(rng.randrange(length))


@pytest.mark.parametrize("seed", range(3))
def test_refresh_races_with_the_head(seed: int) -> None:
    """A step's first head reads the old front during the refresh, its second head the new one.

    The host does not wait between steps, so many are in flight at a time. The heads' results are
    checked at the end.
    """
    lockstep, rng = Lockstep(STEPS, seed=seed), random.Random(seed)
    tokens, hiddens = lockstep.tokens.cuda(), lockstep.hiddens.cuda()
    vocab = ActiveVocab(VOCAB_SIZE, CAPACITY, pinned=PINNED, device="cuda")
    beside = torch.cuda.Stream()
    slab = WeightSlab(lockstep.weight.cuda(), vocab, stream=beside)
    slab.refresh()

    def head(index: int, view: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        groups = view[3].repeat(ROWS)
        hidden = hiddens[lockstep.order[index]]
        return sparse_head(hidden, view[0], view[1], BEST, packed=True, group_ids=groups)

    said = []
    for index in range(STEPS):
        old = slab.front()
        delay(rng)
        vocab.update(tokens[index])
        with torch.cuda.stream(beside):
            delay(rng)
        slab.refresh()
        delay(rng)
        first = head(index, old)
        # Sometimes the vocabulary has changed again before the refresh begins.
        said.append((first, head(index, slab.front()) if index % 3 else None))
    torch.cuda.synchronize()
    for index, (first, second) in enumerate(said):
        active_ids = lockstep.vocab.ids[0].clone()
        lockstep.step(index)
        lockstep.check_head(index, active_ids, first)
        if second is not None:
            lockstep.check_head(index, lockstep.vocab.ids[0], second)
    lockstep.check_vocab(STEPS - 1, vocab)


def test_ops_keep_to_their_stream() -> None:
    """Behind a delay in their stream, ops read the data written to that stream before."""
    rng = torch.Generator("cuda").manual_seed(0)
    case = real_case(rng, MODELS["llama"], m=10, capacity=1000)
    want = expected(case)
    late = torch.full_like(case.hidden, float("nan"))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SECOND // 20)
        late.copy_(case.hidden)
        check_head(case.changed(hidden=late), want)


def test_nothing_touches_the_legacy_stream() -> None:
    """The legacy stream is blocked for a second or more; ops on another stream finish earlier."""
    lockstep = Lockstep(40)
    tokens, hidden = lockstep.tokens.cuda(), lockstep.hiddens[0].cuda()
    vocab = ActiveVocab(VOCAB_SIZE, CAPACITY, pinned=PINNED, device="cuda")
    slab = WeightSlab(lockstep.weight.cuda(), vocab, dtype=torch.int8)

    def steps() -> None:
        for step in tokens:
            vocab.update(step)
            slab.refresh()
            rows, ids, scale, group = slab.front()
            options = {"packed": True, "group_ids": group.repeat(ROWS), "weight_scale": scale}
            sparse_head(hidden, rows, ids, BEST, **options)
            sparse_head(hidden, slab.weight, vocab.ids, BEST)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        steps()  # loads the kernels and fills the memory pool of this stream
    torch.cuda.synchronize()
    torch.cuda._sleep(SECOND)
    blocked = torch.cuda.default_stream().record_event()
    with torch.cuda.stream(stream):
        steps()
    stream.synchronize()
    assert not blocked.query(), "the ops waited for the legacy stream"
    torch.cuda.synchronize()
