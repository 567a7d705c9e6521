"""The slab: a packed copy of the active rows of the LM head."""

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import QUANTISED
from .ops import gather_rows_
from .vocab import ActiveVocab


class SlabView(NamedTuple):
    """What ``sparse_head(packed=True)`` takes.

    rows: [B·G, K, D]; ids: int32 [B·G, K]; scale: fp32 [B·G, K] or None;
    group_ids: int64 [M], which buffer and group serves each row of hidden.
    """

    rows: Tensor
    ids: Tensor
    scale: Tensor | None
    group_ids: Tensor


class WeightSlab:
    """Keeps the rows of the active tokens side by side, copying only those that changed.

    The buffers are groups of one slab, and which of them is the front is a number on the device: so
    one captured graph serves every step. A slab carries its own ids: a head that reads it can never
    disagree with the rows, whatever the vocabulary has done since. On a CPU, :meth:`refresh` is
    synchronous and one buffer is enough.

    Args:
        weight: the LM head [V, D], bf16, fp16 or fp32; int8 or float8_e4m3fn with ``weight_scale``.
        vocab: whose rows to keep.
        dtype: of the slab: weight's (default), or int8 or float8_e4m3fn, quantised row by row.
        buffers: 2 lets a refresh overlap with a draft that reads the other; 1 where they never do.
        weight_scale: fp32 [V] of a quantised weight.

    Raises:
        ValueError: weight does not have vocab's V rows, or another number of buffers.
    """

    def __init__(
        self,
        weight: Tensor,
        vocab: ActiveVocab,
        *,
        dtype: torch.dtype | None = None,
        buffers: int = 2,
        weight_scale: Tensor | None = None,
    ) -> None:
        if weight.dim() != 2 or weight.size(0) != vocab.vocab_size:
            expected = f"shape [{vocab.vocab_size}, D]"
            raise ValueError(f"WeightSlab: weight: expected {expected}, got {list(weight.shape)}")
        if buffers not in (1, 2):
            raise ValueError(f"WeightSlab: buffers: expected 1 or 2, got {buffers}")
        self.weight, self.vocab, self.weight_scale = weight, vocab, weight_scale
        self.buffers = buffers
        dtype = dtype or weight.dtype
        slots, device = (buffers * vocab.groups, vocab.capacity), vocab.device
        self.rows = torch.zeros(*slots, weight.size(1), dtype=dtype, device=device)
        self.ids = torch.full(slots, -1, dtype=torch.int32, device=device)
        self.scale = torch.ones(slots, device=device) if dtype in QUANTISED else None
        self._front = torch.zeros(1, dtype=torch.int64, device=device)
        self._buffer = torch.arange(buffers, device=device)[:, None, None]

    def refresh(self) -> None:
        """Bring the back buffer up to date with the vocabulary and make it the front."""
        back = (self._front + 1) % self.buffers
        held = self.ids.view(self.buffers, self.vocab.groups, -1)
        wanted = torch.where(self._buffer == back, self.vocab.ids, held).view_as(self.ids)
        gather_rows_(
            self.rows,
            self.ids,
            self.weight,
            wanted,
            slab_scale=self.scale,
            weight_scale=self.weight_scale,
        )
        self._front.copy_(back)

    def front(self, group_ids: Tensor | None = None) -> SlabView:
        """The newest buffer.

        Args:
            group_ids: int32 or int64 [M], each row's group of the vocabulary, -1 for padding.
                Default: group 0, as one id to be expanded over the rows.
        """
        base = self._front * self.vocab.groups
        if group_ids is not None:
            group_ids = torch.where(group_ids >= 0, base + group_ids, -1)
        return SlabView(self.rows, self.ids, self.scale, base if group_ids is None else group_ids)

    def invalidate(self) -> None:
        """Forget every row, as after a change of the weight; refresh before the next use."""
        self.ids.fill_(-1)
