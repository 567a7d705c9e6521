# SPDX-License-Identifier: Apache-2.0
"""The meaning of sparse_head and sparse_logits."""

import torch
from torch import Tensor

from .indexing import by_group, rows_at
from .quantise import dequantise_rows


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
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute the logits [M, K] in ``dtype``, in slot order; -inf where empty.

    z[m, slot] = logit_scale · (hidden[m] · row[slot] + bias), then softcap · tanh(z / softcap) if
    softcap > 0.
    """
    ids = by_group(active_ids)
    rows = hidden.size(0)
    group_of = torch.zeros(rows, dtype=torch.long) if group_ids is None else group_ids.cpu().long()
    group_of = group_of.expand(rows)  # one id may stand for all rows
    logits = hidden.new_full((rows, ids.size(1)), float("-inf"), dtype=dtype)
    for group, group_active in enumerate(ids):
        members = (group_of == group).nonzero().flatten().to(hidden.device)
        slots = (group_active >= 0).nonzero().flatten()
        if not len(members) or not len(slots):
            continue
        tokens = group_active[slots].long()
        source = weight.reshape(len(ids), *weight.shape[-2:])[group] if packed else weight
        index = slots if packed else tokens
        row = rows_at(source, index)
        scale = None
        if weight_scale is not None:
            scales = weight_scale.view(*ids.shape, -1)[group] if packed else weight_scale
            scale = rows_at(scales, index).view(len(index), -1)
        row = dequantise_rows(row, scale, dtype)
        z = hidden[members].to(dtype) @ row.T
        if bias is not None:
            z = z + bias[tokens].to(dtype)
        z = logit_scale * z
        if softcap > 0:
            z = softcap * torch.tanh(z / softcap)
        logits[members[:, None], slots[None]] = z
    return logits


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
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the top k of sparse_logits and their logsumexp over the row's active tokens.

    Entries are sorted by logit descending, then by id ascending; NaN comes last. Rows with fewer
    than k active tokens are padded with (-inf, -1).

    Returns:
        logits [M, k] in ``dtype``, token_ids int64 [M, k] and logsumexp [M] in ``dtype``.
    """
    z = sparse_logits(
        hidden,
        weight,
        active_ids,
        packed=packed,
        group_ids=group_ids,
        weight_scale=weight_scale,
        bias=bias,
        logit_scale=logit_scale,
        softcap=softcap,
        dtype=dtype,
    )
    ids = by_group(active_ids).long()
    if group_ids is None:
        token_ids = ids[:1].expand(z.size(0), -1)
    else:
        group_of = group_ids.expand(z.size(0))
        padding = (group_of < 0)[:, None]
        token_ids = ids[group_of.clamp(min=0).long()].masked_fill(padding, -1)
    # Stable sorts, least significant key first: id, then logit, then rank (number, NaN, empty).
    order = token_ids.argsort(dim=1, stable=True)
    value = z.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    order = order.gather(1, value.gather(1, order).argsort(dim=1, descending=True, stable=True))
    rank = z.isnan().long() + 2 * (token_ids < 0)
    order = order.gather(1, rank.gather(1, order).argsort(dim=1, stable=True))[:, :k]

    padded_logits = z.new_full((z.size(0), k), float("-inf"))
    padded_ids = token_ids.new_full((z.size(0), k), -1)
    padded_logits[:, : order.size(1)] = z.gather(1, order)
    padded_ids[:, : order.size(1)] = token_ids.gather(1, order)
    # If K = 0, the logsumexp is that of an empty sum: -inf.
    logsumexp = z.logsumexp(1) if z.size(1) else z.new_full((z.size(0),), float("-inf"))
    return padded_logits, padded_ids, logsumexp
