"""Shards of the LM head: what a rank does with its own, and how one result comes of all. No
communication here (:mod:`microspec_kernels.parallel` has it); nothing is read back to the host.
"""

import torch
from torch import Tensor

# Below the order of every logit: see keys_of.
_NAN_ORDER, _EMPTY_ORDER = -(2**31) + 1, -(2**31)
_START = "microspec_kernels.parallel: start"  # what errors name


def local_ids(active_ids: Tensor, start: int, rows: int) -> Tensor:
    """The active tokens that a rank holds, as rows of its shard; -1 for everybody else's.

    Args:
        active_ids: int32 [K] or [G, K], token ids; -1 is an empty slot, and so is what no rank
            holds.
        start, rows: the rank holds the rows of tokens start to start + rows - 1.

    Returns:
        int32, shaped as active_ids, for ops that have the shard as weight; a token keeps its slot.

    Raises:
        ValueError, TypeError: start.
    """
    check_start(start, rows)
    owned = (active_ids >= start) & (active_ids < start + rows)
    return torch.where(owned, active_ids - start, -1)


def packed(logits: Tensor, token_ids: Tensor, logsumexp: Tensor, start: int) -> Tensor:
    """A rank's part of the all-gather: int32 [M, 2k + 1], floats as their bits."""
    tokens = torch.where(token_ids >= 0, token_ids + start, -1).int()
    bits = logits.view(torch.int32), tokens, logsumexp[:, None].view(torch.int32)
    return torch.cat(bits, dim=1)


def merged(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All ranks' parts, int32 [ranks, M, 2k + 1], as the result of sparse_head."""
    k = parts.size(2) // 2
    values = parts.view(torch.float32)
    logits = values[..., :k].transpose(0, 1).flatten(1)
    token_ids = parts[..., k : 2 * k].transpose(0, 1).flatten(1).long()
    best = keys_of(logits, token_ids).topk(k, dim=1).indices
    logsumexp = values[..., 2 * k].double().logsumexp(0).float()
    return logits.gather(1, best), token_ids.gather(1, best), logsumexp


def keys_of(logits: Tensor, token_ids: Tensor) -> Tensor:
    """int64, larger is better: by logit, then NaN, then empty entries; equals by smaller id."""
    bits = (logits + 0.0).view(torch.int32)  # -0 is equal to 0
    order = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)  # as integers as they were as floats
    order = torch.where(logits.isnan(), _NAN_ORDER, order)
    order = torch.where(token_ids < 0, _EMPTY_ORDER, order)
    return (order.long() << 32) - token_ids


def check_start(start: int, rows: int) -> None:
    if not isinstance(start, int):
        raise TypeError(f"{_START}: expected an int, got {type(start).__name__}")
    if not 0 <= start < 2**31 - rows:
        raise ValueError(f"{_START}: expected 0 <= start < 2^31 - {rows}, got {start}")


def check_ranges(ranges: list[list[int]], vocab_size: int) -> None:
    """``ranges``: [start, end) of each rank; together all of [0, vocab_size), in any order."""
    held = sorted([start, end] for start, end in ranges if start < end)
    edges = [0, *(edge for pair in held for edge in pair), vocab_size]
    if edges[::2] != edges[1::2]:
        expected = f"shards that have each row of [0, {vocab_size}) once"
        got = ", ".join(f"[{start}, {end})" for start, end in ranges)
        raise ValueError(f"{_START}: expected {expected}, got {got}")
