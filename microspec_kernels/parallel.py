# SPDX-License-Identifier: Apache-2.0
"""The LM head split by rows over the ranks of a process group, as in tensor parallelism.

Every rank sees the same tokens, so every rank keeps the same active vocabulary. A rank scores the
active tokens whose rows it holds. The other tokens are empty slots on that rank, for which it reads
nothing. One all-gather lets all ranks merge the same candidates in the same order. Therefore

- all ranks have the same result bit for bit, even if their copies of ``hidden`` differ (with equal
  devices and equal builds of PyTorch);
- logits and token_ids equal those of one rank that holds all rows, bit for bit, except on the
  reference backend: M, D and K are the same there, and no logit depends on the other slots;
- logsumexp equals that of one rank up to rounding: each rank rounds its logsumexp to fp32 before it
  sends it.

A call reads nothing back to the host, and its shapes depend on M and k alone. It can be captured in
a CUDA graph if its collective can: NCCL's can, after a first call outside the graph. None of this
has been run or measured on several GPUs yet.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import ops
from ._shards import Merger, check_ranges, check_start, local_ids, logsumexp_of, packed

__all__ = [
    "Ranks",
    "all_gather_rows",
    "all_gather_topk",
    "all_reduce_ids",
    "all_reduce_logits",
    "local_ids",
    "parallel_sparse_head",
]

# torch 2.13 renamed all_gather_into_tensor to all_gather_single. None without torch.distributed.
_all_gather: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))
_NEGATIVE_INFINITY = -0x00800000  # the bits of -inf in fp32, as int32


def all_gather_topk(
    logits: Tensor,
    token_ids: Tensor,
    logsumexp: Tensor,
    *,
    start: int,
    process_group: "dist.ProcessGroup | None" = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the results of all ranks into the k best entries per row.

    This is a collective: all ranks must call it with the same shapes. A rank sends 12k + 4 or
    12k + 8 bytes per row: k logits, k ids as they are, and the logsumexp. (A largest logit and a
    sum in place of the logsumexp would take more bytes and add nothing, because the result is
    fp32.)

    Args:
        logits, token_ids, logsumexp: fp32 [..., k], int64 [..., k] and fp32 [...], from
            :func:`~.ops.sparse_head` over :func:`local_ids`.
        start: the token of the shard's first row. No two ranks may hold the same token.
        process_group: the ranks; None for the default group. Use NCCL for tensors on GPUs, gloo on
            CPUs.

    Returns:
        logits fp32 [..., k], token_ids int64 [..., k] and logsumexp fp32 [...] over the tokens of
        all ranks, in sparse_head's order, ties included.

    Raises:
        ValueError: start out of range; torch.distributed is not initialised, or process_group lacks
            this rank.
        TypeError: start is not an int; process_group is not a ProcessGroup.
    """
    check_start(start, 0)
    count = logsumexp.numel()
    ranks = Ranks(None, process_group, device=logits.device, room=count)
    tokens = torch.where(token_ids >= 0, token_ids + start, -1)
    return ranks.topk(logits, tokens, logsumexp)


class Ranks:
    """The ranks that share an LM head, and what they do with the results of all.

    Args:
        ranges: [start, end) of each rank, see :func:`check_shards`; None if results name tokens.
        process_group: as for :func:`all_gather_topk`.
        all_gather: gathers fp32 [n, m] of each rank, any bits, to [ranks · n, m], in the order of
            process_group: an engine's communicator. None: torch.distributed.
        device, room: see :class:`~._shards.Merger`.

    Raises:
        ValueError, TypeError: process_group as for :func:`all_gather_topk`.
    """

    def __init__(
        self,
        ranges: list[list[int]] | None,
        process_group: "dist.ProcessGroup | None",
        *,
        device: torch.device,
        all_gather: Callable[[Tensor], Tensor] | None = None,
        **room: int,
    ) -> None:
        self._size, self._group = _size_of(process_group), process_group
        self._all_gather = all_gather or self._gathered
        self._merger = Merger(ranges, device, **room)

    def topk(
        self, logits: Tensor, rows: Tensor, logsumexp: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge the results of all ranks; a collective.

        Args:
            logits, rows, logsumexp: fp32 [..., k], int64 [..., k] and fp32 [...], the result of
                :func:`~.ops.sparse_head` on this rank.

        Returns:
            The same of all ranks, with token ids for rows.
        """
        if not logits.numel():
            return logits, rows, logsumexp
        parts = self._parts(logits, rows, logsumexp)
        best, tokens = self._merger.best(parts)
        total = logsumexp_of(parts)
        return best.view_as(logits), tokens.view_as(rows), total.view_as(logsumexp)

    def argmax(self, logits: Tensor, rows: Tensor, logsumexp: Tensor) -> Tensor:
        """Return the best token of all ranks, int64 [...]; a collective of three more ops.

        Args:
            logits, rows, logsumexp: as for :meth:`topk`, with k = 1.
        """
        if not logits.numel():
            return rows[..., 0]
        return self._merger.best(self._parts(logits, rows, logsumexp))[1].view_as(logsumexp)

    def _parts(self, logits: Tensor, rows: Tensor, logsumexp: Tensor) -> Tensor:
        """Return the packed results of all ranks: fp32 [ranks, M, words]."""
        k = logits.size(-1)
        part = packed(logits.reshape(-1, k), rows.reshape(-1, k), logsumexp.reshape(-1))
        return self._all_gather(part).view(self._size, *part.shape)

    def _gathered(self, part: Tensor) -> Tensor:
        parts = part.new_empty(self._size * len(part), part.size(1))
        _all_gather(parts, part, group=self._group)
        return parts


def parallel_sparse_head(
    hidden: Tensor,
    shard: Tensor,
    active_ids: Tensor,
    k: int,
    *,
    start: int,
    process_group: "dist.ProcessGroup | None" = None,
    group_ids: Tensor | None = None,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`~.ops.sparse_head` over a weight [V, D] whose rows are split over the ranks.

    This is a collective: all ranks must call it with equal hidden, active_ids, k and options. The
    options mean the same as in sparse_head. (:class:`~.head.SparseHead` with a ``process_group``
    can read from a slab.)

    Args:
        hidden: bf16, fp16 or fp32 [..., D].
        shard: [shard_rows, D], the rows of tokens start to start + shard_rows - 1; shard_rows may
            be 0. The shard must not contain the padding rows that engines put at the end of V.
        active_ids: int32 [K] or [G, K], as for :func:`local_ids`.
        k: number of entries per row, as for sparse_head.
        start, process_group: as for :func:`all_gather_topk`.
        group_ids: int32 or int64 [...] or [1], as for sparse_head.
        weight_scale, bias: [shard_rows], the shard's part.
        logit_scale, softcap: as for sparse_head.

    Returns:
        logits fp32 [..., k], token_ids int64 [..., k] and logsumexp fp32 [...], the same on all
        ranks.

    Raises:
        ValueError, TypeError, IndexError: as sparse_head and all_gather_topk. If one rank raises,
            the others wait for it until the group's timeout.
    """
    top = ops.sparse_head(
        hidden,
        shard,
        local_ids(active_ids, start, shard.size(0)),
        k,
        group_ids=group_ids,
        weight_scale=weight_scale,
        bias=bias,
        logit_scale=logit_scale,
        softcap=softcap,
    )
    return all_gather_topk(*top, start=start, process_group=process_group)


def all_reduce_logits(logits: Tensor, process_group: "dist.ProcessGroup | None" = None) -> Tensor:
    """Merge the slots' logits of all ranks. This is a collective, and it writes to ``logits``.

    At most one rank may hold the row of a slot. Bits are summed, so that the result has that rank's
    bits, NaN included.

    Args:
        logits: fp32, contiguous, any shape; -inf where this rank does not hold the slot's row.
        process_group: as for :func:`all_gather_topk`.

    Returns:
        fp32, shape of logits; -inf where no rank holds the slot's row.
    """
    bits = logits.view(torch.int32).sub_(_NEGATIVE_INFINITY)  # 0 where the row is another rank's
    dist.all_reduce(bits, group=process_group)
    return bits.add_(_NEGATIVE_INFINITY).view(torch.float32)


def all_reduce_ids(
    row_ids: Tensor, *, start: int, process_group: "dist.ProcessGroup | None" = None
) -> Tensor:
    """Merge the slots' tokens of all ranks. This is a collective.

    Args:
        row_ids: int32, any shape: the row of this rank's shard in each slot; -1 where this rank
            does not hold the slot's row. At most one rank may hold it.
        start, process_group: as for :func:`all_gather_topk`.

    Returns:
        int32, shape of row_ids: token ids; -1 where no rank holds the slot's row.
    """
    tokens = torch.where(row_ids >= 0, row_ids + start, -1)
    dist.all_reduce(tokens, op=dist.ReduceOp.MAX, group=process_group)
    return tokens


def all_gather_rows(
    local_rows: Tensor,
    total_rows: int,
    *,
    start: int,
    process_group: "dist.ProcessGroup | None" = None,
) -> Tensor:
    """Gather row numbers from all ranks. This is a collective, and it waits for the device.

    Args:
        local_rows: int64 [n], row numbers within this rank's shard; n may differ between ranks.
        total_rows: number of rows of all shards.
        start, process_group: as for :func:`all_gather_topk`.

    Returns:
        int64 [m], row numbers within the whole LM head, ascending.

    Raises:
        ValueError, TypeError: process_group as for :func:`all_gather_topk`.
    """
    _size_of(process_group)
    marks = torch.zeros(total_rows, dtype=torch.uint8, device=local_rows.device)
    marks[local_rows + start] = 1
    dist.all_reduce(marks, op=dist.ReduceOp.MAX, group=process_group)
    return marks.nonzero()[:, 0]


def check_shards(
    shard_rows: int,
    start: int,
    vocab_size: int,
    process_group: "dist.ProcessGroup | None",
    device: torch.device,
) -> list[list[int]]:
    """Check that the ranks' shards hold each token once. This is a collective, and it waits.

    Args:
        shard_rows: number of rows of this rank's shard.
        start, process_group: as for :func:`all_gather_topk`.
        vocab_size: V, number of rows of all shards.
        device: the device of the shard.

    Returns:
        [start, end) of each rank.

    Raises:
        ValueError: a row that no rank holds, or several do; start and process_group as for
            :func:`all_gather_topk`.
        TypeError: as for :func:`all_gather_topk`.
    """
    check_start(start, shard_rows)
    mine = torch.tensor([[start, start + shard_rows]], device=device)
    ranges = mine.new_empty(_size_of(process_group), 2)
    _all_gather(ranges, mine, group=process_group)
    held: list[list[int]] = ranges.tolist()
    check_ranges(held, vocab_size)
    return held


def _size_of(process_group: "dist.ProcessGroup | None") -> int:
    """Return the number of ranks; raise ValueError or TypeError without a usable group."""
    where = "microspec_kernels.parallel: process_group"
    if not (dist.is_available() and dist.is_initialized()):
        expected = "an initialised group (torch.distributed.init_process_group)"
        raise ValueError(f"{where}: expected {expected}, got none")
    # new_group returns this number, not a group, to a rank that is not in it.
    outside: object = dist.GroupMember.NON_GROUP_MEMBER
    if not (process_group in (None, outside) or isinstance(process_group, dist.ProcessGroup)):
        got = type(process_group).__name__
        raise TypeError(f"{where}: expected a torch.distributed.ProcessGroup, got {got}")
    if dist.get_rank(process_group) < 0:
        raise ValueError(f"{where}: expected a group that contains this rank, got another")
    return dist.get_world_size(process_group)
