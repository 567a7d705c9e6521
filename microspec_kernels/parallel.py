"""The LM head where each rank of a process group holds some of its rows, as in tensor parallelism.

Every rank sees the same tokens, so every rank keeps the same active vocabulary. It scores the
active tokens whose rows it holds (others are empty slots there: nothing is read for them), and one
all-gather lets all ranks merge the same candidates in the same order. So

- all ranks have the same result bit for bit, even where their copies of ``hidden`` do not agree
  (given like devices and builds of PyTorch);
- logits and token_ids are those of one rank that holds all rows, bit for bit but on the
  reference backend: M, D and K are the same there, and no logit depends on what other slots hold;
- logsumexp is that of one rank to rounding: each rank's is rounded to fp32 on its way.

Nothing is read back to the host, and shapes depend on M and k alone. So a call can be captured in a
CUDA graph where its collective can: NCCL's can, after a first call outside the graph. None of this
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
    "all_gather_top_k",
    "local_ids",
    "parallel_sparse_head",
]

# Its name from torch 2.13 on, and before; None in a build without torch.distributed.
_all_gather: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))


def all_gather_top_k(
    logits: Tensor,
    token_ids: Tensor,
    logsumexp: Tensor,
    *,
    start: int,
    group: "dist.ProcessGroup | None" = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best of what all ranks have; a collective, to be called with the same M and k by all.

    A rank sends 8k + 4 bytes a row: k logits, k ids as int32, and the logsumexp. (The largest logit
    and a sum beside it would be more, and tell no more: the result is fp32.)

    Args:
        logits, token_ids, logsumexp: of :func:`~.ops.sparse_head` over :func:`local_ids`.
        start: the token of the shard's first row. No two ranks may hold the same token.
        group: the ranks; None for all. NCCL's for tensors on GPUs, gloo's for those on CPUs.

    Returns:
        What sparse_head returns over the tokens of all ranks: in the same order, ties included.

    Raises:
        ValueError, TypeError: start; a group that is not initialised or not this rank's.
    """
    check_start(start, 0)
    ranks = _size_of(group)
    part = packed(logits, token_ids, logsumexp, start)
    parts = part.new_empty(ranks * part.size(0), part.size(1))
    _all_gather(parts, part, group=group)
    return merged(parts.view(ranks, *part.shape))


def parallel_sparse_head(
    hidden: Tensor,
    shard: Tensor,
    active_ids: Tensor,
    k: int,
    *,
    start: int,
    group: "dist.ProcessGroup | None" = None,
    group_ids: Tensor | None = None,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`~.ops.sparse_head` over a weight [V, D] of which each rank holds some rows.

    A collective: all call it with equal hidden, active_ids, k and options, whose meaning is that of
    sparse_head. (From a slab: :class:`ParallelSparseHead`.)

    Args:
        shard: [rows, D], the rows of tokens start to start + rows - 1; rows may be 0. Without the
            padding that engines put at the end of V.
        active_ids: as for :func:`local_ids`.
        start, group: as for :func:`all_gather_top_k`.
        weight_scale, bias: [rows], the shard's part.

    Returns:
        logits fp32 [M, k], token_ids int64 [M, k], logsumexp fp32 [M], the same on all ranks.

    Raises:
        ValueError, TypeError, IndexError: as sparse_head and all_gather_top_k do. Others then wait
            for the rank that raised until the group's timeout.
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
    return all_gather_top_k(*top, start=start, group=group)


class _LocalVocab:
    """Of an ActiveVocab what heads and slabs use, with its tokens as rows of a rank's shard."""

    def __init__(self, vocab: ActiveVocab, start: int, rows: int) -> None:
        self.vocab_size, self.capacity, self.groups = rows, vocab.capacity, vocab.groups
        self.device, self.update = vocab.device, vocab.update
        self._vocab, self._start = vocab, start

    @property
    def ids(self) -> Tensor:
        return local_ids(self._vocab.ids, self._start, self.vocab_size)


class ParallelSparseHead(nn.Module):
    """:class:`SparseHead` over a weight of which each rank holds some rows.

    To make one and to call it are collectives. Each rank has a vocabulary of its own and lets it
    observe the same tokens; in packed mode its slab has room for K rows and holds the rank's.

    Args:
        shard, start, group: as for :func:`parallel_sparse_head`.
        vocab: the active vocabulary, over all V tokens, on shard's device.
        options: SparseHead's; weight_scale and bias [rows].

    Raises:
        ValueError, TypeError: as SparseHead and all_gather_top_k do; start, where the ranks do not
            hold each of the V tokens once.
    """

    def __init__(
        self,
        shard: Tensor,
        vocab: ActiveVocab,
        *,
        start: int,
        group: "dist.ProcessGroup | None" = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_start(start, shard.size(0))
        own = torch.tensor([[start, start + shard.size(0)]], device=vocab.device)
        ranges = own.new_empty(_size_of(group), 2)
        _all_gather(ranges, own, group=group)
        check_ranges(ranges.tolist(), vocab.vocab_size)
        self.vocab, self.start, self.group = vocab, start, group
        local = cast(ActiveVocab, _LocalVocab(vocab, start, shard.size(0)))
        self.local = SparseHead(shard, local, **options)

    def observe(self, tokens: Tensor, *, token_groups: Tensor | None = None) -> None:
        """As :meth:`SparseHead.observe`, with the same tokens on every rank."""
        self.local.observe(tokens, token_groups=token_groups)

    def forward(
        self, hidden: Tensor, k: int, group_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As SparseHead: hidden [M, D] to logits and token_ids [M, k] and logsumexp [M]."""
        top = self.local(hidden, k, group_ids)
        return all_gather_top_k(*top, start=self.start, group=self.group)

    def logits(self, hidden: Tensor, group_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As SparseHead: hidden [M, D] to logits fp32 and token_ids int64 [M, K], slot by slot.

        A collective. The logits are those of one rank bit for bit: each rank fills in the slots
        whose rows it holds, and the others of it are -inf.
        """
        logits, _ = self.local.logits(hidden, group_ids)
        dist.all_reduce(logits, op=dist.ReduceOp.MAX, group=self.group)
        ids = self.vocab.ids.long()
        rows = 0 if group_ids is None else group_ids.clamp(min=0).long()
        return logits, ids[rows].expand(len(hidden), -1)


def all_gather_rows(
    rows: Tensor, total_rows: int, *, start: int, group: "dist.ProcessGroup | None" = None
) -> Tensor:
    """What all ranks have of rows int64 [n] of their shards, as rows of the whole: ascending.

    A collective, which waits for the device. start, group: as for :func:`all_gather_top_k`.
    """
    _size_of(group)
    marks = torch.zeros(total_rows, dtype=torch.uint8, device=rows.device)
    marks[rows + start] = 1
    dist.all_reduce(marks, op=dist.ReduceOp.MAX, group=group)
    return marks.nonzero()[:, 0]


def _size_of(group: "dist.ProcessGroup | None") -> int:
    """The number of ranks."""
    where = "microspec_kernels.parallel: group"
    if not (dist.is_available() and dist.is_initialized()):
        expected = "an initialised one (torch.distributed.init_process_group)"
        raise ValueError(f"{where}: expected {expected}, got none")
    if dist.get_rank(group) < 0:
        raise ValueError(f"{where}: expected one with this rank in it, got another")
    return dist.get_world_size(group)
