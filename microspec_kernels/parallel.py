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

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import ops
from ._shards import check_ranges, check_start, local_ids, merged, packed
from .head import SparseHead
from .vocab import ActiveVocab

__all__ = [
    "ParallelSparseHead",
    "all_gather_rows",
    "all_gather_topk",
    "local_ids",
    "parallel_sparse_head",
]

# torch 2.13 renamed all_gather_into_tensor to all_gather_single. None without torch.distributed.
_all_gather: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))


def all_gather_topk(
    logits: Tensor,
    token_ids: Tensor,
    logsumexp: Tensor,
    *,
    start: int,
    process_group: "dist.ProcessGroup | None" = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the results of all ranks into the k best entries per row.

    This is a collective: all ranks must call it with the same M and k. A rank sends 8k + 4 bytes
    per row: k logits, k ids as int32, and the logsumexp. (A largest logit and a sum in place of the
    logsumexp would take more bytes and add nothing, because the result is fp32.)

    Args:
        logits, token_ids, logsumexp: fp32 [M, k], int64 [M, k] and fp32 [M], from
            :func:`~.ops.sparse_head` over :func:`local_ids`.
        start: the token of the shard's first row. No two ranks may hold the same token.
        process_group: the ranks; None for all. Use NCCL for tensors on GPUs, gloo on CPUs.

    Returns:
        logits fp32 [M, k], token_ids int64 [M, k] and logsumexp fp32 [M] over the tokens of all
        ranks, in sparse_head's order, ties included.

    Raises:
        ValueError: start out of range; a process group that is not initialised or lacks this rank.
        TypeError: start is not an int.
    """
    check_start(start, 0)
    ranks = _size_of(process_group)
    part = packed(logits, token_ids, logsumexp, start)
    parts = part.new_empty(ranks * part.size(0), part.size(1))
    _all_gather(parts, part, group=process_group)
    return merged(parts.view(ranks, *part.shape))


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
    options mean the same as in sparse_head. (:class:`ParallelSparseHead` can read from a slab.)

    Args:
        hidden: bf16, fp16 or fp32 [M, D].
        shard: [shard_rows, D], the rows of tokens start to start + shard_rows - 1; shard_rows may
            be 0. The shard must not contain the padding rows that engines put at the end of V.
        active_ids: int32 [K] or [G, K], as for :func:`local_ids`.
        k: number of entries per row, 1 to 128.
        start, process_group: as for :func:`all_gather_topk`.
        group_ids: int32 or int64 [M], as for sparse_head.
        weight_scale, bias: [shard_rows], the shard's part.
        logit_scale, softcap: as for sparse_head.

    Returns:
        logits fp32 [M, k], token_ids int64 [M, k] and logsumexp fp32 [M], the same on all ranks.

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


class _LocalVocab:
    """The part of ActiveVocab that heads and slabs use, with tokens as rows of a rank's shard."""

    def __init__(self, vocab: ActiveVocab, start: int, shard_rows: int) -> None:
        self.vocab_size, self.capacity, self.num_groups = (
            shard_rows,
            vocab.capacity,
            vocab.num_groups,
        )
        self.device, self.update = vocab.device, vocab.update
        self._vocab, self._start = vocab, start

    @property
    def ids(self) -> Tensor:
        return local_ids(self._vocab.ids, self._start, self.vocab_size)


class ParallelSparseHead(nn.Module):
    """A :class:`SparseHead` over a weight whose rows are split over the ranks.

    Construction and calls are collectives. Each rank has its own vocabulary and must observe the
    same tokens. In packed mode, a rank's slab has room for K rows and holds the active rows of the
    rank's shard.

    Args:
        shard, start, process_group: as for :func:`parallel_sparse_head`.
        vocab: the active vocabulary over all V tokens, on shard's device.
        options: options of :class:`SparseHead`; weight_scale and bias are [shard_rows].

    Raises:
        ValueError, TypeError: as SparseHead and all_gather_topk. ValueError also if the ranks do
            not hold each of the V tokens exactly once.
    """

    def __init__(
        self,
        shard: Tensor,
        vocab: ActiveVocab,
        *,
        start: int,
        process_group: "dist.ProcessGroup | None" = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_start(start, shard.size(0))
        own = torch.tensor([[start, start + shard.size(0)]], device=vocab.device)
        ranges = own.new_empty(_size_of(process_group), 2)
        _all_gather(ranges, own, group=process_group)
        check_ranges(ranges.tolist(), vocab.vocab_size)
        self.vocab, self.start, self.process_group = vocab, start, process_group
        local = cast(ActiveVocab, _LocalVocab(vocab, start, shard.size(0)))
        self.local = SparseHead(shard, local, **options)

    def observe(self, tokens: Tensor, *, token_groups: Tensor | None = None) -> None:
        """Observe tokens as :meth:`SparseHead.observe` does; every rank must pass the same ones."""
        self.local.observe(tokens, token_groups=token_groups)

    def forward(
        self, hidden: Tensor, k: int, row_groups: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the k best active tokens of each row over all ranks. This is a collective.

        Args:
            hidden, k, row_groups: as for :meth:`SparseHead.forward`.

        Returns:
            logits fp32 [M, k], token_ids int64 [M, k] and logsumexp fp32 [M], the same on all
            ranks.
        """
        top = self.local(hidden, k, row_groups)
        return all_gather_topk(*top, start=self.start, process_group=self.process_group)

    def logits(self, hidden: Tensor, row_groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the logits of every slot. This is a collective.

        Each rank fills the slots whose rows it holds and writes -inf to the others. The logits
        therefore equal those of one rank with all rows, bit for bit.

        Args:
            hidden: bf16, fp16 or fp32 [M, D].
            row_groups: int32 or int64 [M], the vocabulary's group for each row; required if G > 1.

        Returns:
            logits fp32 [M, K] and token_ids int64 [M, K], in slot order.
        """
        logits, _ = self.local.logits(hidden, row_groups)
        dist.all_reduce(logits, op=dist.ReduceOp.MAX, group=self.process_group)
        ids = self.vocab.ids.long()
        groups = 0 if row_groups is None else row_groups.clamp(min=0).long()
        return logits, ids[groups].expand(len(hidden), -1)


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
        ValueError: a process group that is not initialised or lacks this rank.
    """
    _size_of(process_group)
    marks = torch.zeros(total_rows, dtype=torch.uint8, device=local_rows.device)
    marks[local_rows + start] = 1
    dist.all_reduce(marks, op=dist.ReduceOp.MAX, group=process_group)
    return marks.nonzero()[:, 0]


def _size_of(process_group: "dist.ProcessGroup | None") -> int:
    """Return the number of ranks; raise ValueError without a usable group."""
    where = "microspec_kernels.parallel: process_group"
    if not (dist.is_available() and dist.is_initialized()):
        expected = "an initialised group (torch.distributed.init_process_group)"
        raise ValueError(f"{where}: expected {expected}, got none")
    if dist.get_rank(process_group) < 0:
        raise ValueError(f"{where}: expected a group that contains this rank, got another")
    return dist.get_world_size(process_group)
