# SPDX-License-Identifier: Apache-2.0
"""Calls at the sizes of real models, made on the device, and checks that are fast there."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from compare import EPS, assert_bitwise, assert_close, logits_in, logsumexp64, tolerance
from generators import NAN, QUANTISED, HeadCase, poison, row_indexed
from torch import Tensor

from microspec_kernels import sparse_head, sparse_logits
from microspec_kernels.cli.shapes import SHAPES


@dataclass(frozen=True)
class Model:
    vocab_size: int
    dim: int
    softcap: float = 0.0


MODELS = {
    "llama": Model(*SHAPES["Llama-3.1-8B"]),
    "qwen": Model(*SHAPES["Qwen2.5-7B"]),
    "gemma": Model(*SHAPES["Gemma-3-4B"], softcap=30.0),
}


@contextmanager
def on_device(device: str = "cuda") -> Iterator[None]:
    """Make tensors on this device inside the context, also in the tests' helpers."""
    with torch.device(device):
        yield


def normal(rng: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Draw values like generators.normal, on rng's device."""
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, generator=rng, device=rng.device).to(dtype)
    values = torch.randn(shape, generator=rng, device=rng.device)
    return (values * 64 if dtype == torch.float8_e4m3fn else values).to(dtype)


def random_ids(
    rng: torch.Generator, vocab_size: int, num_groups: int, capacity: int, active: int
) -> Tensor:
    """Draw int32 [G, K]: ``active`` distinct ids at random slots of each group, -1 elsewhere."""
    active = min(active, vocab_size)
    ids = torch.full((num_groups, capacity), -1, dtype=torch.int32, device=rng.device)
    for group in ids:
        slots = torch.randperm(capacity, generator=rng, device=rng.device)[:active]
        tokens = torch.randperm(vocab_size, generator=rng, device=rng.device)[:active]
        group[slots] = tokens.int()
    return ids


def real_case(
    rng: torch.Generator,
    model: Model,
    *,
    m: int,
    capacity: int,
    active: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    weight_dtype: torch.dtype | None = None,
    packed: bool = False,
    num_groups: int | None = None,
    bias: torch.dtype | None = None,
    slab_of: int = 1,
) -> HeadCase:
    """Make a case like generators.head_case: memory that a call must not read is poison.

    ``slab_of``: the slab has that many buffers of ``num_groups`` each, and the call uses one of
        them.
    """
    weight_dtype = weight_dtype or dtype
    active = capacity * 15 // 16 if active is None else active
    buffers = slab_of * (num_groups or 1)
    ids = random_ids(rng, model.vocab_size, buffers, capacity, active)
    used = ids[ids >= 0].long().unique()
    hidden = normal(rng, (m, model.dim), dtype)
    # Unit logits, as in a model.
    size = model.dim**-0.5
    scale = None
    with on_device(str(rng.device)):
        weight = poison((model.vocab_size, model.dim), weight_dtype)
        fresh = normal(rng, (len(used), model.dim), weight_dtype)
        row_indexed(weight)[used] = row_indexed(
            fresh if weight_dtype in QUANTISED else fresh * size
        )
        if weight_dtype in QUANTISED:
            scale = torch.full((model.vocab_size,), NAN)
            scale[used] = size / 64 * (0.5 + torch.rand(len(used), generator=rng))
        values = None
        if bias is not None:
            values = torch.full((model.vocab_size,), NAN).to(bias)
            values[used] = normal(rng, (len(used),), bias)
        if packed:
            at = ids.clamp(min=0).long()
            slab = row_indexed(weight)[at]
            slab[ids < 0] = row_indexed(poison((1, model.dim), weight_dtype))[0]
            weight = slab.view(weight_dtype)
            scale = None if scale is None else scale[at].masked_fill(ids < 0, NAN)
    group_ids = None
    if buffers > 1:
        front = (slab_of - 1) * (num_groups or 1)
        group_ids = front + torch.randint(
            0, num_groups or 1, (m,), generator=rng, device=rng.device
        )
        group_ids[torch.rand(m, generator=rng, device=rng.device) < 0.05] = -1
        hidden[group_ids < 0] = NAN
    elif packed:
        weight, scale = weight[0], None if scale is None else scale[0]
    if buffers == 1:
        ids = ids[0]
    return HeadCase(hidden, weight, ids, packed, group_ids, scale, values, 1.0, model.softcap)


@dataclass(frozen=True)
class Expected:
    """All rows of a case in float64: logits [M, K], the ids of their slots, the allowed error."""

    logits: Tensor
    ids: Tensor
    allowed: float


def expected(case: HeadCase) -> Expected:
    with on_device(str(case.hidden.device)):
        ids = torch.atleast_2d(case.active_ids).long()
        if case.group_ids is None:
            ids = ids[:1].expand(case.hidden.size(0), -1)
        else:
            ids = ids[case.group_ids.clamp(min=0)]
            ids = ids.masked_fill((case.group_ids < 0)[:, None], -1)
        return Expected(logits_in(case, torch.float64), ids, tolerance(case))


def first_rows(case: HeadCase, want: Expected, m: int) -> tuple[HeadCase, Expected]:
    group_ids = None if case.group_ids is None else case.group_ids[:m].contiguous()
    cut = case.changed(hidden=case.hidden[:m], group_ids=group_ids)
    return cut, Expected(want.logits[:m], want.ids[:m], want.allowed)


def sorted_slots(logits: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of numbers and -inf; ties are in order of id, padding is (-inf, -1)."""
    by_id = ids.argsort(dim=1, stable=True)
    order = by_id.gather(1, logits.gather(1, by_id).argsort(dim=1, descending=True, stable=True))
    # Empty slots have -inf, which an active slot may have too; sort empty slots last.
    empty = (ids < 0).gather(1, order).long()
    order = order.gather(1, empty.argsort(dim=1, stable=True))[:, :k]
    best, best_ids = logits.gather(1, order), ids.gather(1, order)
    missing = k - best.size(1)
    if missing > 0:
        best = torch.nn.functional.pad(best, (0, missing), value=-math.inf)
        best_ids = torch.nn.functional.pad(best_ids, (0, missing), value=-1)
    return best.masked_fill(best_ids < 0, -math.inf), best_ids


def results(case: HeadCase, k: int) -> tuple[Tensor, ...]:
    head = sparse_head(*case.tensors(), k, **case.options())
    return *head, sparse_logits(*case.tensors(), **case.options())


def check_head(case: HeadCase, want: Expected, k: int = 10) -> None:
    """Check logits against float64, ids against those logits, and that a second call is equal."""
    logits, ids, logsumexp, z = results(case, k)
    assert_close(z, want.logits, want.allowed, "sparse_logits")
    # The selection must be exact whatever the rounding of the logits, with ties in order of id.
    best, best_ids = sorted_slots(z, want.ids, k)
    assert_bitwise(ids, best_ids, "token_ids")
    assert_bitwise(logits + 0.0, best + 0.0, "logits")
    sums = logsumexp64(want.logits)
    size = float(sums[sums.isfinite()].abs().max()) if sums.isfinite().any() else 0.0
    assert_close(logsumexp, sums, want.allowed + 8 * EPS * max(1.0, size), "logsumexp")
    for name, one, other in zip(
        ("logits", "token_ids", "logsumexp", "sparse_logits"),
        results(case, k),
        (logits, ids, logsumexp, z),
        strict=True,
    ):
        assert_bitwise(one, other, f"{name}, run again")
