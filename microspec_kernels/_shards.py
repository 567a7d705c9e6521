# SPDX-License-Identifier: Apache-2.0
"""Compute a rank's part of the sharded LM head, and merge the parts of all ranks.

This module does not communicate; :mod:`microspec_kernels.parallel` does. Its tensor functions read
nothing back to the host.
"""

import torch
from torch import Tensor

from .vocab import ActiveVocab

# Both lie below the order of every logit: see keys_of.
_NAN_ORDER, _EMPTY_ORDER = -(2**31) + 1, -(2**31)
_START = "microspec_kernels.parallel: start"  # the argument that errors name


def local_ids(active_ids: Tensor, start: int, shard_rows: int) -> Tensor:
    """Convert active tokens to rows of a rank's shard; -1 for tokens of other ranks.

    Args:
        active_ids: int32 [K] or [G, K], token ids; -1 marks an empty slot. A token that no rank
            holds counts as an empty slot.
        start: the token of the shard's first row.
        shard_rows: number of rows of the shard: it holds tokens start to start + shard_rows - 1.

    Returns:
        int32, shape of active_ids, for ops that take the shard as weight. A token keeps its slot.

    Raises:
        ValueError: start out of range.
        TypeError: start is not an int.
    """
    check_start(start, shard_rows)
    owned = (active_ids >= start) & (active_ids < start + shard_rows)
    return torch.where(owned, active_ids - start, -1)


class LocalVocab:
    """The part of ActiveVocab that slabs use, with tokens as rows of a rank's shard."""

    def __init__(self, vocab: ActiveVocab, start: int, shard_rows: int) -> None:
        self.vocab_size, self.capacity = shard_rows, vocab.capacity
        self.num_groups, self.device = vocab.num_groups, vocab.device
        self._vocab, self._start = vocab, start

    @property
    def ids(self) -> Tensor:
        """Return the row of each slot's token, int32 [G, K]; -1 for tokens of other ranks."""
        return local_ids(self._vocab.ids, self._start, self.vocab_size)


def packed(logits: Tensor, token_ids: Tensor, logsumexp: Tensor, start: int) -> Tensor:
    """Pack a rank's result for the all-gather: int32 [..., 2k + 1], floats as their bits.

    Args:
        logits, token_ids, logsumexp: fp32 [..., k], int64 [..., k] and fp32 [...].
        start: offset that turns the shard's row numbers into token ids.
    """
    tokens = torch.where(token_ids >= 0, token_ids + start, -1).int()
    bits = logits.view(torch.int32), tokens, logsumexp[..., None].view(torch.int32)
    return torch.cat(bits, dim=-1)


def merged(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the packed parts int32 [ranks, ..., 2k + 1] into a result of sparse_head."""
    k = parts.size(-1) // 2
    values = parts.view(torch.float32)
    logits = values[..., :k].movedim(0, -2).flatten(-2)
    token_ids = parts[..., k : 2 * k].movedim(0, -2).flatten(-2).long()
    best = keys_of(logits, token_ids).topk(k).indices
    logsumexp = values[..., 2 * k].double().logsumexp(0).float()
    return logits.gather(-1, best), token_ids.gather(-1, best), logsumexp


def keys_of(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Compute int64 sort keys, larger is better: logits, then NaN, then empty entries.

    Among equal logits, the smaller token id has the larger key.
    """
    bits = (logits + 0.0).view(torch.int32)  # turns -0 into 0
    # Flip the lower bits of negative floats: then the integers have the order of the floats.
    order = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    order = torch.where(logits.isnan(), _NAN_ORDER, order)
    order = torch.where(token_ids < 0, _EMPTY_ORDER, order)
    return (order.long() << 32) - token_ids


def check_start(start: int, shard_rows: int) -> None:
    if not isinstance(start, int):
        raise TypeError(f"{_START}: expected an int, got {type(start).__name__}")
    if not 0 <= start < 2**31 - shard_rows:
        raise ValueError(f"{_START}: expected 0 <= start < 2^31 - {shard_rows}, got {start}")


def check_ranges(ranges: list[list[int]], vocab_size: int) -> None:
    """Check that the ranges [start, end) of all ranks, in any order, partition [0, vocab_size)."""
    held = sorted([start, end] for start, end in ranges if start < end)
    edges = [0, *(edge for pair in held for edge in pair), vocab_size]
    if edges[::2] != edges[1::2]:
        expected = f"shards that have each row of [0, {vocab_size}) once"
        got = ", ".join(f"[{start}, {end})" for start, end in ranges)
        raise ValueError(f"{_START}: expected {expected}, got {got}")
