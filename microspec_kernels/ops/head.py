# SPDX-License-Identifier: Apache-2.0
"""The functions sparse_head and sparse_logits."""

import torch
from torch import Tensor

from .._gradients import refuse_backward
from .errors import reraise
from .flatten import flatten


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
    """Apply the LM head to the active vocabulary: projection, logsumexp and top-k in one pass.

    A logit is z = logit_scale · (x·w + bias), then softcap · tanh(z / softcap) if softcap > 0. The
    op accumulates in fp32. It sorts by logit descending, then by token id ascending; NaN comes
    last. The result therefore equals ``torch.topk`` over a dense head restricted to the same ids.
    Method: MicroSpec, arXiv 2605.26444.

    Args:
        hidden: bf16, fp16 or fp32 [..., D], any number of leading dimensions; M is their product.
            Stride 1 in the last dimension. Any row stride; rows that are not one stride apart are
            copied. (The op itself takes [M, D] only.)
        weight: the LM head [V, D] (``packed=False``), or a slab [K, D] or [G, K, D]
            (``packed=True``). Its dtype is hidden's, or float8_e4m3fn or int8 with
            ``weight_scale``. Rows of 4 bits are uint8 [.., D/2], D a multiple of 32: a byte holds
            the int4 codes of two columns, the even one in the low half. Or they are nvfp4's:
            float4_e2m1fn_x2 [.., D/2], D a multiple of 16.
        active_ids: int32 [K] or [G, K]; -1 marks an empty slot, anywhere.
        k: number of entries per row, 1 to 128.
        packed: whether row i of ``weight`` belongs to slot i rather than to token i.
        group_ids: int32 or int64 [...], hidden's leading dimensions: the group of each row; or [1]:
            one group for all rows. Required if G > 1; -1 marks a padding row.
        weight_scale: fp32 [V], [K] or [G, K], the scale of each row of a quantised weight; bf16
            [.., D/32], the scale of each 32 columns of int4 rows; float8_e4m3fn [.., D/16], the
            scale of each 16 columns of e2m1 rows.
        bias: [V], in hidden's dtype or fp32.
        logit_scale: finite factor that multiplies every logit, after the bias. It also takes
            nvfp4's scale g of a whole tensor: pass g, and bias / g; or s · g, if the model itself
            scales its logits by s.
        softcap: bound on the magnitude of the logits; 0 applies none.

    Returns:
        logits fp32 [..., k], token_ids int64 [..., k] and logsumexp fp32 [...] over the row's
        active tokens, so that log-probability = logits - logsumexp. A row with fewer than k active
        tokens is padded with (-inf, -1). A NaN logit makes the logsumexp of its row NaN. The
        results have no gradient.

    Raises:
        ValueError: wrong shape, stride, device, k, logit_scale or softcap.
        TypeError: wrong dtype.
        IndexError: id or group out of range (CPU).
        NotImplementedError: a backward pass reaches the results.
    """
    rows, row_groups, leading = flatten("sparse_head", hidden, group_ids)
    try:
        results: tuple[Tensor, Tensor, Tensor] = torch.ops.microspec.sparse_head(
            rows,
            weight,
            active_ids,
            k,
            packed=packed,
            group_ids=row_groups,
            weight_scale=weight_scale,
            bias=bias,
            logit_scale=logit_scale,
            softcap=softcap,
        )
    except RuntimeError as error:
        reraise(error)
    logits, token_ids, logsumexp = refuse_backward(
        "sparse_head",
        results,
        hidden=hidden,
        weight=weight,
        weight_scale=weight_scale,
        bias=bias,
    )
    if hidden.dim() == 2:
        return logits, token_ids, logsumexp
    shape = *leading, logits.size(1)
    return logits.view(shape), token_ids.view(shape), logsumexp.view(leading)


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
    """Compute the logits of :func:`sparse_head` for every slot.

    Arguments and errors are those of :func:`sparse_head`.

    Returns:
        fp32 [..., K], in slot order; -inf at empty slots.
    """
    rows, row_groups, leading = flatten("sparse_logits", hidden, group_ids)
    try:
        logits: Tensor = torch.ops.microspec.sparse_logits(
            rows,
            weight,
            active_ids,
            packed=packed,
            group_ids=row_groups,
            weight_scale=weight_scale,
            bias=bias,
            logit_scale=logit_scale,
            softcap=softcap,
        )
    except RuntimeError as error:
        reraise(error)
    (logits,) = refuse_backward(
        "sparse_logits",
        (logits,),
        hidden=hidden,
        weight=weight,
        weight_scale=weight_scale,
        bias=bias,
    )
    return logits if hidden.dim() == 2 else logits.view((*leading, logits.size(1)))
