# SPDX-License-Identifier: Apache-2.0
"""gather_rows_: copy or quantise the rows of the slots whose id changed.

A program compares the ids of a few slots, then moves one changed row after the other. Its slots are
a grid apart, because evicted slots tend to be neighbours: they were last used in the same step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import multiprocessors, on_device_of

# A program has four warps, and a multiprocessor holds 64 warps, so all slots are compared at once.
PROGRAMS_PER_MULTIPROCESSOR = 16
# Four 16-byte loads in flight a thread: a row of 4096 bf16 values takes one round.
BLOCK_BYTES = 8192
INT8_MAX = tl.constexpr(127.0)
FLOAT8_MAX = tl.constexpr(448.0)
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
        # Magnitudes order as their bits do, with infinity and NaN above all.
        size = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        largest = tl.maximum(largest, tl.max(size, 0))
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
def _copy(source, target, dim, BLOCK: tl.constexpr):
    """Copy one row of dim elements."""
    for start in range(0, dim, BLOCK):
        d = start + tl.arange(0, BLOCK)
        tl.store(target + d, tl.load(source + d, mask=d < dim), mask=d < dim)


@triton.jit(do_not_specialize=["slots", "last_id"])
def gather_rows_kernel(
    slab,  # [slots, D]
    slab_ids,  # int32 [slots]
    slab_scale,  # fp32 [slots], when COPY_SCALE or QUANTISE
    weight,  # [V, D]
    weight_scale,  # fp32 [V], when COPY_SCALE
    active_ids,  # int32 [slots]
    slots,
    last_id,  # V - 1
    dim,
    weight_stride,
    COPY_SCALE: tl.constexpr,
    QUANTISE: tl.constexpr,
    E4M3: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
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
        target = slab + slot * dim
        if QUANTISE:
            _quantise(source, target, slab_scale + slot, dim, E4M3, BLOCK)
        else:
            _copy(source, target, dim, BLOCK)
            if COPY_SCALE:
                tl.store(slab_scale + slot, tl.load(weight_scale + token))


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
    if slab.dtype == torch.uint8:
        raise ValueError("microspec: slab: expected rows of 8 bits and more in Triton, got uint8")
    slots, dim = active_ids.numel(), weight.size(1)
    if not slots:
        return
    quantise = slab.dtype != weight.dtype
    programs = min(slots, PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(slab.device))
    # Copies move bits, not numbers, so every dtype of one size uses the same kernel.
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[weight.element_size()]
    float8 = slab.dtype == torch.float8_e4m3fn
    block = min(BLOCK_BYTES // weight.element_size(), triton.next_power_of_2(max(1, dim)))
    with on_device_of(slab):
        gather_rows_kernel[(programs,)](
            slab.view(torch.uint8)
            if quantise and float8
            else slab
            if quantise
            else slab.view(bits),
            slab_ids,
            slab_ids if slab_scale is None else slab_scale,
            weight if quantise else weight.view(bits),
            slab_ids if weight_scale is None else weight_scale,
            active_ids,
            slots,
            weight.size(0) - 1,
            dim,
            weight.stride(0),
            COPY_SCALE=weight_scale is not None,
            QUANTISE=quantise,
            E4M3=float8,
            BLOCK_SLOTS=triton.next_power_of_2(triton.cdiv(slots, programs)),
            BLOCK=block,
            enable_fp_fusion=False,
        )
