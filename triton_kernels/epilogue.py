# SPDX-License-Identifier: Apache-2.0
"""The epilogue of both head ops' kernels: turn the projection's partial sums into logits."""

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    """Compute tanh to an ulp or two.

    Near 0, where 1 - 2 / (e^2x + 1) cancels, use Cephes' polynomial.
    """
    size = tl.abs(x)
    square = size * size
    near = -5.70498872745e-3
    near = near * square + 2.06390887954e-2
    near = near * square - 5.37397155531e-2
    near = near * square + 1.33314422036e-1
    near = near * square - 3.33332819422e-1
    near = near * square * size + size
    far = 1.0 - tl.math.div_rn(2.0, tl.exp(2.0 * size) + 1.0)
    result = tl.where(size < 0.625, near, tl.where(size < 40.0, far, 1.0))
    result = tl.where(x < 0, -result, result)
    return tl.where(x == x, result, x)


@triton.jit
def group_of(group_ids, row, num_groups):
    """Return a row's group, or -1 if it is not in [0, num_groups)."""
    group = tl.load(group_ids + row)
    return tl.where((group >= 0) & (group < num_groups), group, -1).to(tl.int32)


@triton.jit
def finish(
    partial,
    ids,
    valid,
    slots,
    row,
    group,
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
):
    """Return the logits of one row of hidden at some slots; -inf at slots that are not valid."""
    at = partial + row.to(tl.int64) * capacity + slots
    step = m_rows.to(tl.int64) * capacity
    z = tl.zeros_like(slots).to(tl.float32)
    for split in range(0, splits):
        z += tl.load(at + split * step, mask=valid, other=0.0)
    if SCALED:
        place = group.to(tl.int64) * capacity + slots if PACKED else ids
        z *= tl.load(weight_scale + place, mask=valid, other=0.0)
    if BIASED:
        z += tl.load(bias + ids, mask=valid, other=0.0).to(tl.float32)
    z *= logit_scale
    if CAPPED:
        z = softcap * _tanh(tl.math.div_rn(z, softcap))
    return tl.where(valid, z, float("-inf"))
