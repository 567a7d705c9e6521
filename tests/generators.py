# SPDX-License-Identifier: Apache-2.0
"""Test inputs, made from a seed.

Poison marks all memory that an op must not read: rows, scales and biases of inactive tokens, rows
of empty slots, gaps between strided rows, padding rows of hidden. It is NaN, or POISON_INT8 for
int8. A kernel that reads poison fails every test.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from microspec_kernels._checks import E2M1, FOUR_BIT, INT4
from microspec_kernels._checks import PINNED_STAMP as PINNED

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
QUANTISED = (torch.int8, torch.float8_e4m3fn)
NAN = float("nan")
POISON_INT8 = 111  # int8 and 4-bit rows have no NaN; the scale of a poisoned row is NaN


def poison(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype in FOUR_BIT:
        return torch.full(shape, POISON_INT8, dtype=torch.uint8).view(dtype)
    return torch.full(shape, POISON_INT8 if dtype == torch.int8 else NAN).to(dtype)


def int4_rows(columns: Tensor) -> Tensor:
    """Pack integers [.., D] from -8 to 7 to uint8 [.., D/2], the even column in the low half."""
    halves = columns.long() % 16
    return (halves[..., ::2] + 16 * halves[..., 1::2]).to(INT4)


def e2m1_rows(codes: Tensor) -> Tensor:
    """Pack e2m1 codes [.., D] from 0 to 15 to [.., D/2], the even column in the low half."""
    return (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8).view(E2M1)


def normal(rng: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Draw normal floats of unit variance; int8 and fp8 values cover most of their range."""
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, generator=rng).to(dtype)
    if dtype in FOUR_BIT:
        return torch.randint(0, 256, shape, generator=rng).to(torch.uint8).view(dtype)
    values = torch.randn(shape, generator=rng)
    return (values * 64).to(dtype) if dtype == torch.float8_e4m3fn else values.to(dtype)


def integers(rng: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Draw integers from -3 to 3. Sums of up to 2^20 products are exact in any order."""
    if dtype == INT4:
        return int4_rows(torch.randint(-3, 4, (*shape[:-1], 2 * shape[-1]), generator=rng))
    if dtype == E2M1:
        codes = torch.tensor([13, 12, 10, 0, 2, 4, 5])  # of -3 to 3
        return e2m1_rows(codes[torch.randint(0, 7, (*shape[:-1], 2 * shape[-1]), generator=rng)])
    return torch.randint(-3, 4, shape, generator=rng).to(dtype)


def stored(rows: torch.dtype, dim: int) -> tuple[int, int]:
    """Return D and a row's elements; D of 4-bit rows is ``dim`` rounded up to whole groups."""
    if rows not in FOUR_BIT:
        return dim, dim
    group, _ = FOUR_BIT[rows]
    dim = -(-dim // group) * group
    return dim, dim // 2


def no_scales(rows: torch.dtype, shape: tuple[int, ...], dim: int) -> Tensor | None:
    """Return NaN for each scale of rows [*shape, dim]; None if they have none."""
    if rows in FOUR_BIT:
        group, kind = FOUR_BIT[rows]
        return torch.full((*shape, dim // group), NAN).to(kind)
    return torch.full(shape, NAN) if rows in QUANTISED else None


def row_indexed(rows: Tensor) -> Tensor:
    """View fp8 and fp4 rows as bytes, because PyTorch cannot index them."""
    return rows.view(torch.uint8) if rows.dtype in (torch.float8_e4m3fn, E2M1) else rows


def strided(tensor: Tensor, gap: int) -> Tensor:
    """Copy the rows into memory with ``gap`` poisoned elements between them."""
    wide = poison((*tensor.shape[:-1], tensor.size(-1) + gap), tensor.dtype)
    row_indexed(wide)[..., : tensor.size(-1)] = row_indexed(tensor)
    return wide[..., : tensor.size(-1)]


def unique_ids(rng: torch.Generator, vocab_size: int, capacity: int, active: int) -> Tensor:
    """Draw int32 [capacity]: ``active`` distinct ids at random slots, -1 elsewhere."""
    ids = torch.full((capacity,), -1, dtype=torch.int32)
    slots = torch.randperm(capacity, generator=rng)[:active]
    ids[slots] = torch.randperm(vocab_size, generator=rng)[:active].int()
    return ids


@dataclass(frozen=True)
class HeadCase:
    """The arguments of sparse_head, except k."""

    hidden: Tensor
    weight: Tensor
    active_ids: Tensor
    packed: bool = False
    group_ids: Tensor | None = None
    weight_scale: Tensor | None = None
    bias: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float = 0.0

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hidden, self.weight, self.active_ids

    def options(self) -> dict[str, Any]:
        names = ("packed", "group_ids", "weight_scale", "bias", "logit_scale", "softcap")
        return {name: getattr(self, name) for name in names}

    def changed(self, **changes: Any) -> "HeadCase":
        return replace(self, **changes)


def head_case(
    seed: int,
    *,
    m: int = 3,
    dim: int = 24,
    vocab_size: int = 50,
    capacity: int = 20,
    active: int | None = None,
    num_groups: int | None = None,
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype | None = None,
    packed: bool = False,
    bias: torch.dtype | None = None,
    gap: int = 0,
    padding: bool = False,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    exact: bool = False,
    long_groups: bool = True,
    one_group: bool = False,
) -> HeadCase:
    """Make a call with ``active`` filled slots in each group (default: three quarters).

    If ``num_groups`` is None, active_ids is [K] and group_ids is None. ``padding`` makes some rows
    of hidden padding rows with NaN. ``one_group`` makes one group id for all rows. ``exact`` draws
    small integers: all arithmetic is exact, and ties are frequent.
    """
    rng = torch.Generator().manual_seed(seed)
    draw = integers if exact else normal
    weight_dtype = weight_dtype or dtype
    count = min(capacity, vocab_size)
    active = math.ceil(0.75 * count) if active is None else min(active, count)
    ids = torch.stack(
        [
            unique_ids(rng, vocab_size, capacity, active)
            for _ in range(1 if num_groups is None else num_groups)
        ]
    )
    dim, columns = stored(weight_dtype, dim)
    weight = poison((vocab_size, columns), weight_dtype)
    scale = no_scales(weight_dtype, (vocab_size,), dim)
    used = ids[ids >= 0].long().unique()
    row_indexed(weight)[used] = row_indexed(draw(rng, (len(used), columns), weight_dtype))
    if scale is not None:
        # Powers of two keep exact cases exact.
        steps = torch.rand((len(used), *scale.shape[1:]), generator=rng) * 4 - 8
        drawn = (2.0 ** (steps.round() if exact else steps)).to(scale.dtype)
        row_indexed(scale)[used] = row_indexed(drawn)
    hidden = draw(rng, (m, dim), dtype)

    group_ids = None
    if num_groups is not None:
        low = -1 if padding else 0
        group_ids = torch.randint(low, num_groups, (1 if one_group else m,), generator=rng)
        group_ids = group_ids if long_groups else group_ids.int()
        hidden[group_ids.expand(m) < 0] = NAN
    bias_values = None
    if bias is not None:
        bias_values = torch.full((vocab_size,), NAN).to(bias)
        bias_values[used] = draw(rng, (len(used),), bias)
    if packed:
        at = ids.clamp(min=0).long()
        empty = ids < 0
        packed_rows = row_indexed(weight)[at]
        packed_rows[empty] = row_indexed(poison((1, columns), weight_dtype))[0]
        weight = packed_rows.view(weight_dtype)
        if scale is not None:
            scale = row_indexed(scale)[at].view(scale.dtype)
            row_indexed(scale)[empty] = row_indexed(torch.full((), NAN).to(scale.dtype))
    if num_groups is None:
        ids = ids[0]
        if packed:
            weight, scale = weight[0], None if scale is None else scale[0]
    if gap:
        hidden, weight = strided(hidden, gap), strided(weight, gap)
    return HeadCase(
        hidden, weight, ids, packed, group_ids, scale, bias_values, logit_scale, softcap
    )


@st.composite
def head_cases(
    draw: st.DrawFn, *, exact: bool = False, dim: int = 150, rows: torch.dtype | None = None
) -> HeadCase:
    """Draw any shape and option. Shapes are small, because they shrink best.

    Exact cases have no softcap. ``rows`` is the weight's dtype; default: any of 8 bits or more.
    """
    dtype = draw(st.sampled_from(FLOATS))
    capacity = draw(st.integers(0, 40))
    num_groups = draw(st.sampled_from((None, None, 1, 2, 3)))
    return head_case(
        draw(st.integers(0, 2**20)),
        m=draw(st.integers(0, 15)),
        dim=draw(st.one_of(st.integers(1, 9), st.integers(1, dim))),
        vocab_size=draw(st.integers(1, 60)),
        capacity=capacity,
        active=draw(st.integers(0, capacity)),
        num_groups=num_groups,
        dtype=dtype,
        weight_dtype=rows or draw(st.sampled_from((dtype, *QUANTISED))),
        packed=draw(st.booleans()),
        bias=draw(st.sampled_from((None, dtype, torch.float32))),
        gap=draw(st.sampled_from((0, 1, 8))),
        padding=draw(st.booleans()),
        logit_scale=draw(
            st.sampled_from((1.0, 0.5, -2.0) if exact else (1.0, 0.5, 3.7, -1.3, 0.0))
        ),
        softcap=0.0 if exact else draw(st.sampled_from((0.0, 0.5, 30.0))),
        exact=exact,
        long_groups=draw(st.booleans()),
        one_group=draw(st.booleans()),
    )


@dataclass(frozen=True)
class GatherCase:
    """The arguments of gather_rows_."""

    slab: Tensor
    slab_ids: Tensor
    weight: Tensor
    active_ids: Tensor
    slab_scale: Tensor | None = None
    weight_scale: Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        return dict(vars(self))

    def copy(self) -> "GatherCase":
        """Copy slab, slab_ids and slab_scale; share the other tensors."""
        written = {"slab", "slab_ids", "slab_scale"}
        return GatherCase(
            **{k: v.clone() if k in written and v is not None else v for k, v in vars(self).items()}
        )


def gather_case(
    seed: int,
    *,
    dim: int = 24,
    vocab_size: int = 50,
    capacity: int = 20,
    num_groups: int | None = None,
    dtype: torch.dtype = torch.float32,
    slab_dtype: torch.dtype | None = None,
    gap: int = 0,
    same: float = 0.5,
) -> GatherCase:
    """Make a slab that already holds about the share ``same`` of the wanted ids.

    The slab's rows differ from the weight's. The weight's rows of the held ids are poisoned,
    because gather_rows_ must not read them.
    """
    rng = torch.Generator().manual_seed(seed)
    slab_dtype = slab_dtype or dtype
    count = min(capacity, vocab_size)
    shape = (1 if num_groups is None else num_groups, capacity)

    def some_ids() -> Tensor:
        active = int(torch.randint(0, count + 1, (1,), generator=rng))
        return unique_ids(rng, vocab_size, capacity, active)

    wanted = torch.stack([some_ids() for _ in range(shape[0])])
    held = torch.stack([some_ids() for _ in range(shape[0])])
    held = torch.where(torch.rand(shape, generator=rng) < same, wanted, held)
    dim, columns = stored(slab_dtype, dim)
    weight = poison((vocab_size, columns if dtype in FOUR_BIT else dim), dtype)
    scale = no_scales(dtype, (vocab_size,), dim)
    fresh = wanted[(wanted != held) & (wanted >= 0)].long().unique()
    row_indexed(weight)[fresh] = row_indexed(normal(rng, (len(fresh), weight.size(1)), dtype))
    if scale is not None:
        drawn = torch.rand((len(fresh), *scale.shape[1:]), generator=rng).to(scale.dtype)
        row_indexed(scale)[fresh] = row_indexed(drawn)
    slab = normal(rng, (*shape, columns), slab_dtype)
    slab_scale = no_scales(slab_dtype, shape, dim)
    if slab_scale is not None:
        slab_scale = torch.rand(slab_scale.shape, generator=rng).to(slab_scale.dtype)
    weight = strided(weight, gap) if gap else weight
    if num_groups is None:
        slab, held, wanted = slab[0], held[0], wanted[0]
        slab_scale = None if slab_scale is None else slab_scale[0]
    return GatherCase(slab, held, weight, wanted, slab_scale, scale)


@dataclass(frozen=True)
class VocabState:
    """The arguments of vocab_update_, except tokens and token_groups."""

    active_ids: Tensor
    slot_stamps: Tensor
    token_slots: Tensor
    clock: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.active_ids, self.slot_stamps, self.token_slots, self.clock

    def copy(self) -> "VocabState":
        return VocabState(*(tensor.clone() for tensor in self.tensors()))


def vocab_state(
    vocab_size: int,
    capacity: int,
    *,
    num_groups: int = 1,
    pinned: tuple[int, ...] = (),
    closed: int = 0,
    clock: int = 0,
) -> VocabState:
    """Make a vocabulary with ``pinned`` in its last slots and its first slots closed."""
    ids = torch.full((num_groups, capacity), -1, dtype=torch.int32)
    stamps = torch.full((num_groups, capacity), -1, dtype=torch.int64)
    slots = torch.full((num_groups, vocab_size), -1, dtype=torch.int32)
    stamps[:, :closed] = PINNED
    for slot, token in enumerate(pinned, start=capacity - len(pinned)):
        ids[:, slot], stamps[:, slot], slots[:, token] = token, PINNED, slot
    return VocabState(ids, stamps, slots, torch.full((num_groups,), clock, dtype=torch.int64))


def spread(tensor: Tensor) -> Tensor:
    """Return zeros of the same shape and dtype, with a gap after every element."""
    wide = tensor.new_zeros((*tensor.shape, 2))
    return wide[..., 0]


def with_value(tensor: Tensor, position: int, value: int) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[position] = value
    return changed
