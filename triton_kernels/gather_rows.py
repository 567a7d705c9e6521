# SPDX-License-Identifier: Apache-2.0
"""gather_rows_: copy or quantise the rows of the slots whose id changed.

A program compares the ids of a few slots, then moves one changed row after the other. Its slots are
a grid apart, because evicted slots tend to be neighbours: they were last used in the same step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import FOUR_BIT, INT4, INT4_GROUP
from .common import multiprocessors, on_device_of

# A program has four warps, and a multiprocessor holds 64 warps, so all slots are compared at once.
PROGRAMS_PER_MULTIPROCESSOR = 16
# Four 16-byte loads in flight a thread: a row of 4096 bf16 values takes one round.
BLOCK_BYTES = 8192
INT8_MAX = tl.constexpr(127.0)
FLOAT8_MAX = tl.constexpr(448.0)
INT4_MAX = tl.constexpr(7.0)
TINY = tl.constexpr(2.0**-126)  # the smallest normal number


@triton.jit
def _int8(x):
    """Round half to even, for |x| <= 127: near 1.5 · 2^23, fp32 numbers are 1 apart."""
    return ((x + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def _e4m3(x):
    """Return float8_e4m3fn's byte, rounded half to even; |x| <= 448, so nothing overflows.

    The conversion is in integer arithmetic, because not every device converts (an A100 does not)
    and all must agree bit for bit.
    """
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # Normal numbers: drop 20 mantissa bits, half to even, and lower the exponent's bias by 120.
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 the step is 2^-9, which is fp32's step near 2^14: the addition rounds.
    beside = size.to(tl.float32, bitcast=True) + 16384.0
    subnormal = beside.to(tl.int32, bitcast=True) - (141 << 23)
    byte = tl.where(size < (121 << 23), subnormal, normal)
    return (byte | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _quantise(source, target, scale, dim, E4M3: tl.constexpr, BLOCK: tl.constexpr):
    """Quantise one row: scale = amax / largest, or 1 if that is subnormal.

    If a value is not finite, scale is NaN and q is 0.
    """
    largest = tl.full((), 0, tl.int32)
    for start in range(0, dim, BLOCK):
        d = start + tl.arange(0, BLOCK)
        x = tl.load(source + d, mask=d < dim, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(_magnitude(x), 0))
    amax = largest.to(tl.float32, bitcast=True)
    step = tl.math.div_rn(amax, FLOAT8_MAX if E4M3 else INT8_MAX)
    step = tl.where(step >= TINY, step, 1.0)
    finite = largest < 0x7F800000
    tl.store(scale, tl.where(finite, step, float("nan")))
    for start in range(0, dim, BLOCK):
        d = start + tl.arange(0, BLOCK)
        x = tl.load(source + d, mask=d < dim, other=0.0).to(tl.float32)
        x = tl.where(finite, tl.math.div_rn(x, step), 0.0)
        tl.store(target + d, _e4m3(x) if E4M3 else _int8(x), mask=d < dim)


@triton.jit
def _magnitude(x):
    """Return the bits of |x|, which order as the numbers do, with infinity and NaN above all."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _quantise_int4(source, target, scales, dim, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Quantise one row by groups of columns, each by the rule of a row and with a bf16 scale."""
    byte = tl.arange(0, GROUP // 2)[None, :]
    for start in range(0, dim // GROUP, BLOCK // GROUP):
        group = start + tl.arange(0, BLOCK // GROUP)
        inside = group < dim // GROUP
        columns = source + group[:, None] * GROUP + 2 * byte
        even = tl.load(columns, mask=inside[:, None], other=0.0).to(tl.float32)
        odd = tl.load(columns + 1, mask=inside[:, None], other=0.0).to(tl.float32)
        largest = tl.max(tl.maximum(_magnitude(even), _magnitude(odd)), 1)
        step = tl.math.div_rn(largest.to(tl.float32, bitcast=True), INT4_MAX)
        step = tl.where(step >= TINY, step, 1.0)
        bits = step.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to bf16, half to even
        finite = largest < 0x7F800000
        tl.store(scales + group, tl.where(finite, bits, 0x7FC0).to(tl.int16), mask=inside)
        step = (bits << 16).to(tl.float32, bitcast=True)[:, None]
        low = _int8(tl.where(finite[:, None], tl.math.div_rn(even, step), 0.0)).to(tl.int32)
        high = _int8(tl.where(finite[:, None], tl.math.div_rn(odd, step), 0.0)).to(tl.int32)
        codes = ((low & 15) | ((high & 15) << 4)).to(tl.uint8)
        tl.store(target + group[:, None] * (GROUP // 2) + byte, codes, mask=inside[:, None])


@triton.jit
def _copy(source, target, dim, BLOCK: tl.constexpr):
    """Copy one row of dim elements."""
    for start in range(0, dim, BLOCK):
        d = start + tl.arange(0, BLOCK)
        tl.store(target + d, tl.load(source + d, mask=d < dim), mask=d < dim)


@triton.jit(do_not_specialize=["slots", "last_id"])
def gather_rows_kernel(
    slab,  # [slots, D]; 4-bit rows have D/2 bytes
    slab_ids,  # int32 [slots]
    slab_scale,  # fp32 [slots], or bits of bf16 [slots, D/32] or of e4m3 [slots, D/16], when
    # COPY_SCALE or QUANTISE
    weight,  # [V, D]
    weight_scale,  # the same [V, ..], when COPY_SCALE
    active_ids,  # int32 [slots]
    slots,
    last_id,  # V - 1
    dim,  # elements of a row of the weight
    weight_stride,
    row_scales,  # scales of a row
    COPY_SCALE: tl.constexpr,
    QUANTISE: tl.constexpr,
    INT4: tl.constexpr,
    INT4_GROUP: tl.constexpr,
    E4M3: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
):
    mine = tl.program_id(0) + tl.arange(0, BLOCK_SLOTS) * tl.num_programs(0)
    held = tl.load(slab_ids + mine, mask=mine < slots, other=-1)
    wanted = tl.load(active_ids + mine, mask=mine < slots, other=-1)
    # An id out of range is an empty slot and is stored as -1, so that a head that reads the slab
    # need not know V.
    wanted = tl.where((wanted >= 0) & (wanted <= last_id), wanted, -1)
    changed = (held != wanted) & (mine < slots)
    tl.store(slab_ids + mine, wanted, mask=changed)

    to_move = (changed & (wanted >= 0)).to(tl.int32)
    number = tl.cumsum(to_move, 0)
    for moved in range(0, tl.sum(to_move, 0)):
        this = (to_move != 0) & (number == moved + 1)
        slot = tl.sum(tl.where(this, mine, 0), 0).to(tl.int64)
        token = tl.sum(tl.where(this, wanted, 0), 0).to(tl.int64)
        source = weight + token * weight_stride
        target = slab + slot * (dim // 2 if QUANTISE and INT4 else dim)
        scales = slab_scale + slot * row_scales
        if QUANTISE and INT4:
            _quantise_int4(source, target, scales, dim, INT4_GROUP, BLOCK)
        elif QUANTISE:
            _quantise(source, target, scales, dim, E4M3, BLOCK)
        else:
            _copy(source, target, dim, BLOCK)
            if COPY_SCALE:
                _copy(weight_scale + token * row_scales, scales, row_scales, SCALE_BLOCK)


def _scales(scale: Tensor | None, other: Tensor) -> Tensor:
    """Return the scales, bf16 and e4m3 as their bits; any tensor in place of None."""
    if scale is None:
        return other
    bits = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}
    return scale.view(bits.get(scale.dtype, scale.dtype))


def gather_rows_(
    slab: Tensor,
    slab_ids: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    *,
    slab_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> None:
    """Compute :func:`microspec_kernels.gather_rows_` in Triton, without its checks."""
    slots, dim = active_ids.numel(), weight.size(1)
    if not slots:
        return
    quantise = slab.dtype != weight.dtype
    programs = min(slots, PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(slab.device))
    # Copies move bits, not numbers, so every dtype of one size uses the same kernel.
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[weight.element_size()]
    float8, int4 = slab.dtype == torch.float8_e4m3fn, slab.dtype == INT4
    row_scales = 1
    if slab.dtype in FOUR_BIT and slab_scale is not None:
        row_scales = slab_scale.size(-1)
    block = min(BLOCK_BYTES // weight.element_size(), triton.next_power_of_2(max(1, dim)))
    with on_device_of(slab):
        gather_rows_kernel[(programs,)](
            slab.view(torch.uint8)
            if quantise and float8
            else slab
            if quantise
            else slab.view(bits),
            slab_ids,
            _scales(slab_scale, slab_ids),
            weight if quantise else weight.view(bits),
            _scales(weight_scale, slab_ids),
            active_ids,
            slots,
            weight.size(0) - 1,
            dim,
            weight.stride(0),
            row_scales,
            COPY_SCALE=weight_scale is not None,
            QUANTISE=quantise,
            INT4=int4,
            INT4_GROUP=INT4_GROUP,
            E4M3=float8,
            BLOCK_SLOTS=triton.next_power_of_2(triton.cdiv(slots, programs)),
            BLOCK=max(block, INT4_GROUP) if quantise and int4 else block,
            SCALE_BLOCK=min(BLOCK_BYTES // 4, triton.next_power_of_2(max(1, row_scales))),
            enable_fp_fusion=False,
        )
