# SPDX-License-Identifier: Apache-2.0
"""Rows of 8 and 4 bits: their values, and their products with hidden."""

import triton
import triton.language as tl

from .common import INTERPRETED

# The interpreter computes with NumPy, which has no bf16.
WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def float_of_e4m3(bits):
    """Convert float8_e4m3fn, passed as uint8, to fp16, which represents all of its values.

    The exponent and mantissa in fp16's fields are the value but for the bias, a factor of 2^8. A
    multiplication by it is also right for subnormals.
    """
    wide = bits.to(tl.uint16)
    shifted = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    value = shifted.to(tl.float16, bitcast=True) * 256.0
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), value)


@triton.jit
def _int_of_int4(codes):
    """Convert two's complement codes of 4 bits, 0 to 15, to int32 from -8 to 7."""
    return (codes.to(tl.int32) ^ 8) - 8


@triton.jit
def add_int4(total, row_start, scale_start, x_start, start, valid, used, GROUP: tl.constexpr):
    """Add the products of a group of 4-bit columns, which share a scale, to total.

    The scale multiplies their sum: code · scale would not fit into hidden's dtype.
    """
    byte = tl.arange(0, GROUP // 2)
    codes = tl.load(row_start + start // 2 + byte[None, :], mask=valid[:, None], other=0)
    even = tl.load(x_start + start + 2 * byte[None, :], mask=used[:, None], other=0)
    odd = tl.load(x_start + start + 2 * byte[None, :] + 1, mask=used[:, None], other=0)
    if WIDEN:
        even, odd = even.to(tl.float32), odd.to(tl.float32)
    low, high = _int_of_int4(codes & 15).to(even.dtype), _int_of_int4(codes >> 4).to(even.dtype)
    product = tl.dot(low, tl.trans(even), input_precision="ieee")
    product = tl.dot(high, tl.trans(odd), product, input_precision="ieee")
    scale = tl.load(scale_start + start // GROUP, mask=valid, other=0.0).to(tl.float32)
    return total + product * scale[:, None]


@triton.jit
def _float_of_e2m1(codes):
    """Convert e2m1 codes, 0 to 15, to fp16, as :func:`float_of_e4m3` does; the factor is 2^14."""
    wide = codes.to(tl.uint16)
    bits = ((wide & 7) << 9) | ((wide & 8) << 12)
    return bits.to(tl.float16, bitcast=True) * 16384.0


@triton.jit
def add_e2m1(
    total, row_start, scale_start, x_start, start, dim, valid, used,
    STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Add the products of some e2m1 columns to total.

    code · scale has at most six significant bits and an exponent from -10 to 11, so it fits into
    hidden's dtype, whatever it is.
    """
    slots: tl.constexpr = total.shape[0]
    byte = tl.arange(0, STEP // 2)[None, :]
    inside = start + 2 * byte < dim
    codes = tl.load(row_start + start // 2 + byte, mask=valid[:, None] & inside, other=0)
    even = tl.load(x_start + start + 2 * byte, mask=used[:, None] & inside, other=0)
    odd = tl.load(x_start + start + 2 * byte + 1, mask=used[:, None] & inside, other=0)
    if WIDEN:
        even, odd = even.to(tl.float32), odd.to(tl.float32)
    group = tl.arange(0, STEP // GROUP)[None, :]
    present = valid[:, None] & (start + GROUP * group < dim)
    scale = tl.load(scale_start[:, None] + start // GROUP + group, mask=present, other=0)
    scale = tl.broadcast_to(float_of_e4m3(scale)[:, :, None], [slots, STEP // GROUP, GROUP // 2])
    scale = tl.reshape(scale, [slots, STEP // 2])
    low, high = _float_of_e2m1(codes & 15) * scale, _float_of_e2m1(codes >> 4) * scale
    total = tl.dot(low.to(even.dtype), tl.trans(even), total, input_precision="ieee")
    return tl.dot(high.to(odd.dtype), tl.trans(odd), total, input_precision="ieee")
