# SPDX-License-Identifier: Apache-2.0
"""sparse_logits: finish the projection's partial sums slot by slot."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import on_device_of
from .epilogue import finish, group_of
from .projection import Projection

# Slots a program: eight for each thread of four warps, two 16-byte stores.
BLOCK = 1024


@triton.jit(do_not_specialize=["num_groups", "last_id", "m_rows", "capacity", "splits"])
def sparse_logits_kernel(
    logits,  # fp32 [M, K]
    partial,  # fp32 [splits, M, K]
    active_ids,  # int32 [G, K]
    group_ids,  # [M], when GROUPED
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
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    slots = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    group = group_of(group_ids, row, num_groups) if GROUPED else row * 0
    in_use = tl.where(group >= 0, capacity, 0)
    group_active = active_ids + group.to(tl.int64) * capacity
    ids = tl.load(group_active + slots, mask=slots < in_use, other=-1)
    valid = (ids >= 0) & (ids <= last_id)
    z = finish(
        partial, ids, valid, slots, row, group, weight_scale, bias, m_rows, capacity, splits,
        logit_scale, softcap, PACKED, SCALED, BIASED, CAPPED,
    )  # fmt: skip
    tl.store(logits + row.to(tl.int64) * capacity + slots, z, mask=slots < capacity)


def sparse_logits(
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    *,
    packed: bool = False,
    group_ids: Tensor | None = None,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
) -> Tensor:
    """Compute :func:`microspec_kernels.sparse_logits` in Triton, without its checks."""
    m_rows, capacity = hidden.size(0), active_ids.size(-1)
    logits = hidden.new_empty((m_rows, capacity), dtype=torch.float32)
    with on_device_of(hidden):
        product = Projection(
            hidden, weight, active_ids, packed=packed, group_ids=group_ids,
            weight_scale=weight_scale, bias=bias, logit_scale=logit_scale, softcap=softcap,
        )  # fmt: skip
        if logits.numel():
            sparse_logits_kernel[(m_rows, triton.cdiv(capacity, BLOCK))](
                logits,
                product.partial,
                active_ids,
                product.group_ids,
                product.num_groups,
                product.last_id,
                *product.arguments,
                **product.constants,
                BLOCK=BLOCK,
                enable_fp_fusion=False,
            )
    return logits
