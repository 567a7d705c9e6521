# SPDX-License-Identifier: Apache-2.0
"""Compute a rank's part of the sharded LM head, and merge the parts of all ranks.

This module does not communicate; :mod:`microspec_kernels.parallel` does. Its tensor functions read
nothing back to the host.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops
from .vocab import ActiveVocab

# Rows of hidden in a call: a step of 1024 requests whose drafts are trees of 8 tokens a level.
ROOM = 8192
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
        self._kept: Tensor | None = None

    @property
    def ids(self) -> Tensor:
        """Return the row of each slot's token, int32 [G, K]; -1 for tokens of other ranks.

        They are those of now, or those of the last :meth:`follow` if it was ever called.
        """
        if self._kept is None:
            return local_ids(self._vocab.ids, self._start, self.vocab_size)
        return self._kept

    @torch.inference_mode(False)  # a tensor made in inference mode cannot be updated outside it
    def follow(self) -> None:
        """Keep the rows of the vocabulary as it is now. Call again after each change.

        A draft then computes none. One lookup takes the place of five elementwise kernels; on a GPU
        it is two, because PyTorch converts int32 indices first.
        """
        if self._kept is None:
            tokens = torch.arange(-1, self._vocab.vocab_size, dtype=torch.int32, device=self.device)
            # The index -1, an empty slot, reads the last entry.
            self._rows = local_ids(tokens, self._start, self.vocab_size).roll(-1)
            self._kept = torch.empty_like(self._vocab.ids)
        torch.ops.aten.index.Tensor_out(self._rows, [self._vocab.ids], out=self._kept)


def packed(logits: Tensor, token_ids: Tensor, logsumexp: Tensor) -> Tensor:
    """Pack a rank's result for the all-gather: fp32 [M, 3k + 1] or [M, 3k + 2], one kernel.

    They are bits, in the dtype that every communicator takes (vLLM's on a CPU takes floats only). A
    row has the ids (two words each, the bits of int64), the logits, and logsumexp, twice if that
    makes the number of words even: then ids can be viewed as int64 again.

    Args:
        logits, token_ids, logsumexp: fp32 [M, k], int64 [M, k] and fp32 [M].
    """
    total = logsumexp[:, None].view(torch.int32)
    parts = [token_ids.contiguous(), logits.contiguous()]
    again = 2 - logits.size(1) % 2
    bits = torch.cat([*(part.view(torch.int32) for part in parts), *[total] * again], dim=1)
    return bits.view(torch.float32)


class Merger:
    """Merge the packed results of all ranks, which an all-gather has put one after the other.

    :func:`~.ops.sparse_head` orders the candidates, as it orders those of one rank: each is an
    active row of one column, its logit, and hidden is 1. So ties, NaN and empty entries rank as
    they do there, on every backend.

    Args:
        ranges: [start, end) of each rank, if the ids are rows of its shard. None: they are tokens.
        device: the device of the parts.
        room: the number of rows of hidden for which constants are kept. More rows cost a kernel.
    """

    @torch.inference_mode(False)  # tensors made in inference mode cannot be saved for later modes
    def __init__(
        self, ranges: Sequence[Sequence[int]] | None, device: torch.device, room: int = ROOM
    ) -> None:
        self._one = torch.ones(1, device=device)
        self._groups = torch.arange(room, device=device)
        self._rows: Tensor | None = None
        if ranges is None:
            return
        most = max(end - start for start, end in ranges)
        # The index -1, an empty entry, reads the last column.
        rows = torch.full((len(ranges), most + 1), -1, dtype=torch.int32, device="cpu")
        for rank, (start, end) in enumerate(ranges):
            rows[rank, : end - start] = torch.arange(start, end, device="cpu")
        self._rows = rows.to(device)
        self._ranks = torch.arange(len(ranges), device=device)[:, None]

    def best(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the k best logits fp32 [M, k] and token ids int64 [M, k] of all ranks.

        Maps the ids and merges: two ops, and a copy of the logits if k > 1.

        Args:
            parts: fp32 [ranks, M, words], what :func:`packed` returns on each rank; M > 0.
        """
        k, count = _num_best(parts), parts.size(1)
        logits = parts[..., 2 * k : 3 * k].transpose(0, 1).flatten(1)
        groups = self._groups[:count]
        if len(groups) < count:
            groups = torch.arange(count, device=parts.device)
        best = ops.sparse_head(
            self._one.expand(count, 1),
            logits[:, :, None],
            self._token_ids(parts.view(torch.int64)[..., :k].transpose(0, 1)).view_as(logits),
            k,
            packed=True,
            group_ids=groups,
        )
        return best[0], best[1]

    def _token_ids(self, ids: Tensor) -> Tensor:
        """Return int32 [M, ranks, k], contiguous, for int64 [M, ranks, k] in one kernel."""
        result = ids.new_empty(ids.shape, dtype=torch.int32)
        if self._rows is None:
            return result.copy_(ids)
        torch.ops.aten.index.Tensor_out(self._rows, [self._ranks, ids], out=result)
        return result


def logsumexp_of(parts: Tensor) -> Tensor:
    """Return logsumexp over the tokens of all ranks, fp32 [M]; parts as for :class:`Merger`."""
    return parts[..., 3 * _num_best(parts)].double().logsumexp(0).float()


def _num_best(parts: Tensor) -> int:
    return (parts.size(-1) - 1) // 3


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
