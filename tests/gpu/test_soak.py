# SPDX-License-Identifier: Apache-2.0
"""Calls of any shape and option, from seeds, for ``--soak-seconds`` seconds."""

import random
import time

import pytest
import torch
from compare import assert_bitwise
from generators import FLOATS, QUANTISED, gather_case, row_indexed, vocab_state
from torch import Tensor

from microspec_kernels import gather_rows_, vocab_update_

from .cases import Model, check_head, expected, real_case


def log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(low * (high / low) ** rng.random())


def some_head(seed: int) -> None:
    rng, device_rng = random.Random(seed), torch.Generator("cuda").manual_seed(seed)
    dtype = rng.choice(FLOATS)
    model = Model(
        log_uniform(rng, 1, 40_000), log_uniform(rng, 1, 9000), rng.choice((0.0, 0.0, 30.0))
    )
    if rng.random() < 0.7:  # sizes of models, which tensor cores can use
        model = Model(model.vocab_size, -(-model.dim // 64) * 64, model.softcap)
    num_groups = rng.choice((None, None, 1, 2, 9))
    capacity = log_uniform(rng, 1, 6000 // (num_groups or 1))
    count = min(capacity, model.vocab_size)
    case = real_case(
        device_rng,
        model,
        m=log_uniform(rng, 1, 400),
        capacity=capacity,
        active=rng.choice((count, rng.randint(0, count))),
        dtype=dtype,
        weight_dtype=rng.choice((dtype, *QUANTISED)),
        packed=rng.random() < 0.5,
        num_groups=num_groups,
        bias=rng.choice((None, dtype, torch.float32)),
        slab_of=rng.choice((1, 2)) if num_groups else 1,
    )
    case = case.changed(logit_scale=rng.choice((1.0, 0.5, -1.3)))
    check_head(case, expected(case), rng.randint(1, 128))


def some_gather(seed: int) -> None:
    rng = random.Random(seed)
    dtype = rng.choice((*FLOATS, *QUANTISED))
    case = gather_case(
        seed,
        dim=log_uniform(rng, 1, 3000),
        vocab_size=log_uniform(rng, 1, 2000),
        capacity=log_uniform(rng, 1, 500),
        num_groups=rng.choice((None, 1, 3)),
        dtype=dtype,
        slab_dtype=dtype if dtype in QUANTISED else rng.choice((dtype, *QUANTISED)),
        gap=rng.choice((0, 0, 1, 8)),
        same=rng.choice((0.0, 0.5, 0.95)),
    )
    want = case.copy()
    there = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in case.arguments().items()}
    gather_rows_(**want.arguments())
    gather_rows_(**there)
    assert_bitwise(row_indexed(there["slab"]).cpu(), row_indexed(want.slab), "slab")
    assert_bitwise(there["slab_ids"].cpu(), want.slab_ids, "slab_ids")
    if want.slab_scale is not None:
        assert_bitwise(there["slab_scale"].cpu(), want.slab_scale, "slab_scale")


def some_updates(seed: int) -> None:
    rng, tokens_rng = random.Random(seed), torch.Generator().manual_seed(seed)
    num_groups, vocab_size = rng.choice((1, 1, 4, 40)), log_uniform(rng, 1, 100_000)
    capacity = log_uniform(rng, 1, 20_000 // num_groups)
    pinned = tuple(range(rng.randint(0, min(capacity, vocab_size, 50))))
    want = vocab_state(
        vocab_size,
        capacity,
        num_groups=num_groups,
        pinned=pinned,
        clock=rng.choice((0, 2**31 - 50, 2**40)),
    )
    got = [tensor.cuda() for tensor in want.tensors()]
    for _ in range(6):
        count, spread = log_uniform(rng, 1, 5000), log_uniform(rng, 1, vocab_size)
        ragged = rng.random() < 0.3
        tokens = torch.randint(
            -1, spread, (count,) if ragged else (num_groups, count), generator=tokens_rng
        )
        tokens = tokens.int() if rng.random() < 0.5 else tokens
        token_groups = (
            torch.randint(-1, num_groups, (count,), generator=tokens_rng) if ragged else None
        )
        there = None if token_groups is None else token_groups.cuda()
        vocab_update_(*want.tensors(), tokens, token_groups=token_groups)
        vocab_update_(*got, tokens.cuda(), token_groups=there)
        for one, other in zip(got, want.tensors(), strict=True):
            assert_bitwise(one.cpu(), other)


@pytest.mark.slow
@pytest.mark.parametrize("what", [some_head, some_gather, some_updates], ids=lambda f: f.__name__)
def test_soak(what: object, request: pytest.FixtureRequest, record_property: object) -> None:
    assert callable(what) and callable(record_property)
    end = time.monotonic() + request.config.getoption("--soak-seconds") / 3
    seed = 0
    while time.monotonic() < end:
        try:
            what(seed)
        except AssertionError as error:
            raise AssertionError(f"{what.__name__}({seed}): {error}") from error
        seed += 1
    record_property("cases", seed)
    assert seed > 0
