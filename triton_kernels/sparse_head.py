# SPDX-License-Identifier: Apache-2.0
"""sparse_head: top-k and logsumexp of the projection's logits, one program per row of hidden.

Selection compares 64-bit keys, with the logit above the complement of the id. No two keys are
equal, so the result depends neither on the order of the slots nor on how a network of comparisons
breaks ties. The sum of exponentials is in fixed point, so it does not depend on the order either.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import MAX_TOP_K
from .common import on_device_of
from .epilogue import finish, group_of
from .projection import Projection

# The largest number of slots processed at once: eight a thread of sixteen warps. More would spill,
# together with all the values that finishing the logits needs. The usual capacity of 3072 takes one
# round, so its logits stay in registers for logsumexp.
BLOCK = 4096
SLOTS_PER_WARP = 128
EMPTY = tl.constexpr(-(2**63))  # below every key
LARGEST = tl.constexpr(2**63 - 1)
# exp(z - max) in units of 2^-40. A sum of 2^22 of them fits int64. Truncation loses at most 2^-40 a
# term, of a sum that is at least 1. That is below fp32's rounding for up to 2^16 terms.
UNIT = tl.constexpr(2.0**-40)
UNITS = tl.constexpr(2.0**40)


@triton.jit
def _keys(z, ids, valid):
    """Return int64 keys in the contract's order: numbers, then NaN, then empty slots (least).

    The bits of a float, with all but the sign flipped if it is negative, order as the float does.
    -inf is then -0x7F800001. NaN comes right below it, and both zeros are equal.
    """
    bits = tl.where(z == 0, 0.0, z).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ordered = tl.where(z == z, ordered, -0x7F800002)
    key = (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)
    return tl.where(valid, key, EMPTY)


@triton.jit
def _logits_of(keys):
    """Return the keys' logits: the inverse of ``_keys``, with -inf for empty slots."""
    ordered = (keys >> 32).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    z = bits.to(tl.float32, bitcast=True)
    z = tl.where(ordered < -0x7F800001, float("nan"), z)
    return tl.where(ordered == -0x80000000, float("-inf"), z)


@triton.jit
def _select(keys, best, k, MERGE: tl.constexpr):
    """Return the k largest of the keys (and of ``best``, with MERGE), in the shape of ``best``.

    The result is sorted, largest first. Each round finds the maximum of the keys below the last
    one. At 4096 keys a round takes about 400 cycles. For a tree's k of about ten that is no more
    than a sorting network's passes, and Triton compiles a network over 4096 keys for a minute, for
    each size of k.
    """
    places = tl.arange(0, best.shape[0])
    result = tl.full(best.shape, EMPTY, tl.int64)
    last = tl.full((), LARGEST, tl.int64)
    for place in range(0, k):
        largest = tl.max(tl.where(keys < last, keys, EMPTY), 0)
        if MERGE:
            largest = tl.maximum(largest, tl.max(tl.where(best < last, best, EMPTY), 0))
        result = tl.where(places == place, largest, result)
        last = largest
    return result


@triton.jit
def _units(z, top):
    """Return the sum of exp(z - top) in fixed point; NaN, and -inf at top = -inf, add nothing."""
    term = tl.where(z < top, tl.exp(z - top), 0.0)
    term = tl.where((z == top) & (z > float("-inf")), 1.0, term)
    return tl.sum((term * UNITS).to(tl.int64), 0)


@triton.jit(do_not_specialize=["num_groups", "last_id", "m_rows", "capacity", "splits", "k"])
def sparse_head_kernel(
    logits,  # fp32 [M, k]
    token_ids,  # int64 [M, k]
    logsumexp,  # fp32 [M]
    partial,  # fp32 [splits, M, K]
    active_ids,  # int32 [G, K]
    group_ids,  # [M], when GROUPED
    num_groups,  # G
    last_id,  # V - 1
    k,
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
    TOP: tl.constexpr,  # at least k
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    group = group_of(group_ids, row, num_groups) if GROUPED else row * 0
    in_use = tl.where(group >= 0, capacity, 0)
    group_active = active_ids + group.to(tl.int64) * capacity
    lanes = tl.arange(0, BLOCK)

    ids = tl.load(group_active + lanes, mask=lanes < in_use, other=-1)
    valid = (ids >= 0) & (ids <= last_id)
    z = finish(
        partial, ids, valid, lanes, row, group, weight_scale, bias, m_rows, capacity, splits,
        logit_scale, softcap, PACKED, SCALED, BIASED, CAPPED,
    )  # fmt: skip
    broken = tl.max((z != z).to(tl.int32), 0)
    places = tl.arange(0, TOP)
    best = tl.full([TOP], EMPTY, tl.int64)
    best = _select(_keys(z, ids, valid), best, k, False)
    for start in range(BLOCK, in_use, BLOCK):
        slots = start + lanes
        ids = tl.load(group_active + slots, mask=slots < in_use, other=-1)
        valid = (ids >= 0) & (ids <= last_id)
        more = finish(
            partial, ids, valid, slots, row, group, weight_scale, bias, m_rows, capacity, splits,
            logit_scale, softcap, PACKED, SCALED, BIASED, CAPPED,
        )  # fmt: skip
        broken = tl.maximum(broken, tl.max((more != more).to(tl.int32), 0))
        keys = _keys(more, ids, valid)
        # Most later rounds bring no key above the worst of the best so far.
        if tl.max(keys, 0) > tl.min(tl.where(places < k, best, LARGEST), 0):
            best = _select(keys, best, k, True)

    best_logits = _logits_of(best)
    best_ids = 0x7FFFFFFF - (best & 0x7FFFFFFF)
    best_ids = tl.where(best == EMPTY, -1, best_ids)
    out = row.to(tl.int64) * k + places
    tl.store(logits + out, best_logits, mask=places < k)
    tl.store(token_ids + out, best_ids, mask=places < k)

    # The largest logit that is not NaN; -inf if there is none.
    top = tl.max(tl.where(best_logits == best_logits, best_logits, float("-inf")), 0)
    total = _units(z, top)
    for start in range(BLOCK, in_use, BLOCK):
        slots = start + lanes
        ids = tl.load(group_active + slots, mask=slots < in_use, other=-1)
        valid = (ids >= 0) & (ids <= last_id)
        more = finish(
            partial, ids, valid, slots, row, group, weight_scale, bias, m_rows, capacity, splits,
            logit_scale, softcap, PACKED, SCALED, BIASED, CAPPED,
        )  # fmt: skip
        total += _units(more, top)
    # fp64, once a row, rounds only once in total, and log(1 + small) keeps its digits.
    result = (top.to(tl.float64) + tl.log(tl.maximum(total, 1).to(tl.float64) * UNIT)).to(
        tl.float32
    )
    result = tl.where(tl.abs(top) == float("inf"), top, result)
    tl.store(logsumexp + row, tl.where(broken != 0, float("nan"), result))


def warps(block: int) -> int:
    """Return the number of warps for ``block`` slots at a time."""
    return min(16, max(4, block // SLOTS_PER_WARP))


def sparse_head(
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    k: int,
    *,
    packed: bool = False,
    group_ids: Tensor | None = None,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`microspec_kernels.sparse_head` in Triton, without its checks."""
    m_rows, capacity = hidden.size(0), active_ids.size(-1)
    logits = hidden.new_empty((m_rows, k), dtype=torch.float32)
    token_ids = hidden.new_empty((m_rows, k), dtype=torch.int64)
    logsumexp = hidden.new_empty((m_rows,), dtype=torch.float32)
    block = min(BLOCK, max(MAX_TOP_K, triton.next_power_of_2(capacity)))
    with on_device_of(hidden):
        product = Projection(
            hidden, weight, active_ids, packed=packed, group_ids=group_ids,
            weight_scale=weight_scale, bias=bias, logit_scale=logit_scale, softcap=softcap,
        )  # fmt: skip
        if m_rows:
            sparse_head_kernel[(m_rows,)](
                logits,
                token_ids,
                logsumexp,
                product.partial,
                active_ids,
                product.group_ids,
                product.num_groups,
                product.last_id,
                k,
                *product.arguments,
                **product.constants,
                TOP=MAX_TOP_K,
                BLOCK=block,
                num_warps=warps(block),
                enable_fp_fusion=False,
            )
    return logits, token_ids, logsumexp
