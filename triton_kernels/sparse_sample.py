# SPDX-License-Identifier: Apache-2.0
"""sparse_sample: draw one token per row, in the integers that csrc/head/sample_args.h describes.

The first program of a row draws; the others fill its token_logits with -inf. A second kernel then
stores the active tokens' logits there: Triton has no barrier that orders a program's writes on
every GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import DRAW_SALT, draw_unit
from .common import on_device_of
from .epilogue import finish, group_of
from .projection import Projection

# Slots at once: eight for each thread of eight warps. Of sixteen warps each thread would need a
# stack of 8 bytes (sm_90, sm_100).
BLOCK = 2048
SLOTS_PER_WARP = 256
# Columns of token_logits a program: 32 KB of fp32.
SPAN = 8192
STORED = 1024  # slots a program of the second kernel, as in sparse_logits
SALT = tl.constexpr(DRAW_SALT)


@triton.jit
def _number(seed, position):
    """Return the numerator of u = number / 2^64."""
    key = seed.to(tl.uint64, bitcast=True)
    at = position.to(tl.uint64, bitcast=True)
    k0, k1 = (key & 0xFFFFFFFF).to(tl.uint32), (key >> 32).to(tl.uint32)
    a, b = (at & 0xFFFFFFFF).to(tl.uint32), (at >> 32).to(tl.uint32)
    c = a ^ a
    a, b, _c, _d = tl.random.philox_impl(a, b, c, c | SALT, k0, k1, 10)
    bits = (a.to(tl.uint64) << 21) | (b >> 11).to(tl.uint64)
    return ((bits << 1) | 1) << 10


@triton.jit
def _weights(z, top, coldness, unit):
    """Return the weights of logits as integers; 0 for NaN and for -inf."""
    term = tl.exp((z - top) * coldness)
    term = tl.where(z < top, term, tl.where(z == top, 1.0, 0.0))
    return tl.where(term > 0, term * unit, 0.0).to(tl.int64)


@triton.jit
def _stored(z, token_logits, BF16: tl.constexpr):
    """Convert logits to what token_logits holds; bf16 as its bits, rounded half to even.

    The interpreter would cut bits off in a conversion to bf16.
    """
    if BF16:
        bits = z.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        result = tl.where(z == z, rounded, 0x7FC0).to(tl.int16)
    else:
        result = z.to(token_logits.dtype.element_ty)
    return result


@triton.jit(
    do_not_specialize=[
        "row_stride", "held", "columns", "num_groups", "last_id", "m_rows", "capacity", "splits"
    ]
)  # fmt: skip
def sparse_sample_kernel(
    tokens,  # int64 [M]
    log_probs,  # fp32 [M]
    temperatures,  # fp32 [M]
    seeds,  # int64 [M]
    positions,  # int64 [M]
    row_tokens,  # int64 [V], when MAPPED
    token_logits,  # [R, V'], when there are programs to fill it; bf16 as int16
    logit_rows,  # [M], when NAMED
    row_stride,
    held,  # R
    columns,  # V'
    unit,  # fp32, a power of two
    inverse_unit,  # 1 / unit
    partial,  # fp32 [splits, M, K]
    active_ids,  # int32 [G, K]
    group_ids,  # [M], when GROUPED; [1], when ONE_GROUP
    num_groups,  # G
    last_id,  # V - 1
    weight_scale,
    bias,
    m_rows,
    capacity,
    splits,
    logit_scale,
    softcap,
    PACKED: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    GROUPED: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    MAPPED: tl.constexpr,
    NAMED: tl.constexpr,
    BF16: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    if tl.program_id(1) > 0:
        target = tl.load(logit_rows + row).to(tl.int64) if NAMED else row.to(tl.int64)
        if (target >= 0) & (target < held):
            column = (tl.program_id(1) - 1) * SPAN + tl.arange(0, SPAN)
            nothing = tl.full([SPAN], float("-inf"), tl.float32)
            at = token_logits + target * row_stride + column
            tl.store(at, _stored(nothing, token_logits, BF16), mask=column < columns)
        return
    group = group_of(group_ids, row, num_groups, ONE_GROUP) if GROUPED else row * 0
    in_use = tl.where(group >= 0, capacity, 0)
    group_active = active_ids + group.to(tl.int64) * capacity
    lanes = tl.arange(0, BLOCK)

    # The largest logit, the lowest id that has it, and the lowest id whose logit is NaN.
    top = tl.full((), float("-inf"), tl.float32)
    best_id = tl.full((), 0x7FFFFFFF, tl.int32)
    nan_id = tl.full((), 0x7FFFFFFF, tl.int32)
    numbers = tl.full((), 0, tl.int32)
    for start in range(0, in_use, BLOCK):
        slots = start + lanes
        ids = tl.load(group_active + slots, mask=slots < in_use, other=-1)
        valid = (ids >= 0) & (ids <= last_id)
        z = finish(
            partial, ids, valid, slots, row, group, weight_scale, bias, m_rows, capacity, splits,
            logit_scale, softcap, PACKED, SCALED, BIASED, CAPPED,
        )  # fmt: skip
        number = valid & (z == z)
        largest = tl.max(tl.where(number, z, float("-inf")), 0)
        lowest = tl.min(tl.where(number & (z == largest), ids, 0x7FFFFFFF), 0)
        best_id = tl.where(
            largest > top, lowest, tl.where(largest == top, tl.minimum(best_id, lowest), best_id)
        )
        top = tl.maximum(top, largest)
        nan_id = tl.minimum(nan_id, tl.min(tl.where(valid & (z != z), ids, 0x7FFFFFFF), 0))
        numbers = tl.maximum(numbers, tl.max(number.to(tl.int32), 0))
    any_nan = nan_id != 0x7FFFFFFF
    token = tl.where(numbers > 0, best_id, tl.where(any_nan, nan_id, -1))
    log_prob = tl.where(token >= 0, 0.0, float("-inf"))

    temperature = tl.load(temperatures + row)
    if (temperature > 0) & (numbers > 0):
        # One division a row: those of a vector cost more, and a stack.
        coldness = tl.math.div_rn(1.0, temperature)
        total = tl.full((), 0, tl.int64)
        for start in range(0, in_use, BLOCK):
            slots = start + lanes
            ids = tl.load(group_active + slots, mask=slots < in_use, other=-1)
            valid = (ids >= 0) & (ids <= last_id)
            z = finish(
                partial, ids, valid, slots, row, group, weight_scale, bias, m_rows, capacity,
                splits, logit_scale, softcap, PACKED, SCALED, BIASED, CAPPED,
            )  # fmt: skip
            total += tl.sum(tl.where(valid, _weights(z, top, coldness, unit), 0), 0)
        number = _number(tl.load(seeds + row), tl.load(positions + row))
        left = tl.umulhi(number, total.to(tl.uint64, bitcast=True)).to(tl.int64, bitcast=True)
        before = tl.full((), 0, tl.int64)
        exponent = tl.full((), 0.0, tl.float32)
        for start in range(0, in_use, BLOCK):
            slots = start + lanes
            ids = tl.load(group_active + slots, mask=slots < in_use, other=-1)
            valid = (ids >= 0) & (ids <= last_id)
            z = finish(
                partial, ids, valid, slots, row, group, weight_scale, bias, m_rows, capacity,
                splits, logit_scale, softcap, PACKED, SCALED, BIASED, CAPPED,
            )  # fmt: skip
            weights = tl.where(valid, _weights(z, top, coldness, unit), 0)
            sums = before + tl.cumsum(weights, 0)
            # One slot at most, over all rounds.
            here = (sums > left) & (sums - weights <= left)
            drawn = tl.sum(tl.where(here, ids, 0), 0)
            token = tl.where(tl.max(here.to(tl.int32), 0) > 0, drawn, token)
            exponent += tl.sum(tl.where(here & (z < top), (z - top) * coldness, 0.0), 0)
            before += tl.sum(weights, 0)
        # The largest logit's weight is `unit`: fp64, once a row, keeps the digits of 1 + small.
        whole = total.to(tl.float64) * inverse_unit
        log_prob = (exponent.to(tl.float64) - tl.log(whole)).to(tl.float32)
    if MAPPED:
        named = tl.load(row_tokens + tl.maximum(token, 0), mask=token >= 0, other=-1)
    else:
        named = token.to(tl.int64)
    tl.store(tokens + row, named)
    tl.store(log_probs + row, tl.where(any_nan, float("nan"), log_prob))


@triton.jit(
    do_not_specialize=[
        "row_stride", "held", "columns", "num_groups", "last_id", "m_rows", "capacity", "splits"
    ]
)  # fmt: skip
def store_logits_kernel(
    row_tokens,
    token_logits,
    logit_rows,
    row_stride,
    held,
    columns,
    partial,
    active_ids,
    group_ids,
    num_groups,
    last_id,
    weight_scale,
    bias,
    m_rows,
    capacity,
    splits,
    logit_scale,
    softcap,
    PACKED: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    GROUPED: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    MAPPED: tl.constexpr,
    NAMED: tl.constexpr,
    BF16: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    slots = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(logit_rows + row).to(tl.int64) if NAMED else row.to(tl.int64)
    group = group_of(group_ids, row, num_groups, ONE_GROUP) if GROUPED else row * 0
    in_use = tl.where((group >= 0) & (target >= 0) & (target < held), capacity, 0)
    group_active = active_ids + group.to(tl.int64) * capacity
    ids = tl.load(group_active + slots, mask=slots < in_use, other=-1)
    valid = (ids >= 0) & (ids <= last_id)
    z = finish(
        partial, ids, valid, slots, row, group, weight_scale, bias, m_rows, capacity, splits,
        logit_scale, softcap, PACKED, SCALED, BIASED, CAPPED,
    )  # fmt: skip
    column = tl.load(row_tokens + ids, mask=valid, other=-1) if MAPPED else ids.to(tl.int64)
    at = token_logits + target * row_stride + column
    inside = valid & (column >= 0) & (column < columns)
    tl.store(at, _stored(z, token_logits, BF16), mask=inside)


def warps(block: int) -> int:
    """Return the number of warps for ``block`` slots at a time."""
    return max(4, block // SLOTS_PER_WARP)


def sparse_sample(
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    packed: bool = False,
    group_ids: Tensor | None = None,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    row_tokens: Tensor | None = None,
    token_logits: Tensor | None = None,
    logit_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`microspec_kernels.sparse_sample` in Triton, without its checks."""
    m_rows, capacity = hidden.size(0), active_ids.size(-1)
    tokens = hidden.new_empty((m_rows,), dtype=torch.int64)
    log_probs = hidden.new_empty((m_rows,), dtype=torch.float32)
    with on_device_of(hidden):
        product = Projection(
            hidden, weight, active_ids, packed=packed, group_ids=group_ids,
            weight_scale=weight_scale, bias=bias, logit_scale=logit_scale, softcap=softcap,
        )  # fmt: skip
        if not m_rows:
            return tokens, log_probs
        last_id, held, columns, row_stride = product.last_id, 0, 0, 0
        bf16 = token_logits is not None and token_logits.dtype == torch.bfloat16
        if token_logits is not None:
            token_logits = token_logits.view(torch.int16) if bf16 else token_logits
            (held, columns), row_stride = token_logits.shape, token_logits.stride(0)
            last_id = columns - 1 if packed and bias is None else last_id
        if row_tokens is not None:
            last_id = row_tokens.size(0) - 1
        # An absent tensor is replaced by one that the kernels do not read.
        stored = (
            tokens if row_tokens is None else row_tokens,
            log_probs if token_logits is None else token_logits,
            tokens if logit_rows is None else logit_rows,
            row_stride,
            held,
            columns,
        )
        operands = (product.partial, active_ids, product.group_ids, product.num_groups, last_id)
        flags = {"MAPPED": row_tokens is not None, "NAMED": logit_rows is not None, "BF16": bf16}
        block = min(BLOCK, max(128, triton.next_power_of_2(capacity)))
        sparse_sample_kernel[(m_rows, 1 + triton.cdiv(columns, SPAN))](
            tokens,
            log_probs,
            temperatures,
            seeds,
            positions,
            *stored,
            float(draw_unit(capacity)),
            1.0 / draw_unit(capacity),
            *operands,
            *product.arguments,
            **product.constants,
            **flags,
            SPAN=SPAN,
            BLOCK=block,
            num_warps=warps(block),
            enable_fp_fusion=False,
        )
        if columns and capacity:
            store_logits_kernel[(m_rows, triton.cdiv(capacity, STORED))](
                *stored,
                *operands,
                *product.arguments,
                **product.constants,
                **flags,
                BLOCK=STORED,
                enable_fp_fusion=False,
            )
    return tokens, log_probs
