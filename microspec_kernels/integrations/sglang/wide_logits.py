# SPDX-License-Identifier: Apache-2.0
"""Logits of the active tokens in the width of the whole LM head, as SGLang's draft steps take them.

SGLang's fused chain of top-1 drafts runs only without a token map of the plugin, and its asserts
compare each choice with the number of tokens. With a column for each row of the LM head, both work
as they do without the plugin, and a choice keeps its meaning when the vocabulary changes. Their
softmax is the law that a draft is drawn from, so SGLang's rejection sampling is exact, too. For M
rows of hidden states this writes 4 · M · R bytes; the product with the whole head and its
conversion to fp32 write at least 6 · M · R.
"""

import torch
from torch import Tensor

from microspec_kernels.engine import EngineHead
from microspec_kernels.engine.draft_head import DraftHead

INACTIVE = -1e30
"""The logit of inactive tokens. -inf would trip SGLang's asserts; softmax gives 0 for either."""


class WideLogits:
    """Spread the slots' logits over the rows of the LM head.

    Args:
        head: an :class:`EngineHead` with one vocabulary.
        rows: R, the rows of the LM head on all ranks.
    """

    @torch.inference_mode(False)  # a tensor made in inference mode cannot be updated outside it
    def __init__(self, head: EngineHead, rows: int) -> None:
        self._head, self._rows = head, rows
        device = head.vocab.device
        # An empty slot, -1, reads the last entry. Its logit -inf changes nothing in column 0.
        self._columns_of_ids = torch.arange(rows + 1, device=device)
        self._columns_of_ids[-1] = 0
        self._columns = torch.zeros(head.capacity, dtype=torch.int64, device=device)
        self.update()

    def update(self) -> None:
        """Follow the vocabulary. Call after each change, outside capture.

        One op; on a GPU two kernels, because PyTorch converts int32 indices first.
        """
        ids = self._head.vocab.ids[0]
        torch.ops.aten.index.Tensor_out(self._columns_of_ids, [ids], out=self._columns)

    def logits(
        self, hidden: Tensor, out: Tensor | None = None, head: DraftHead | None = None
    ) -> Tensor:
        """Return fp32 [M, R] for hidden states [M, D]. May be captured.

        Args:
            hidden: the input of the LM head.
            head: another LM head over the same vocabulary.
            out: a buffer to use if it is fp32 [M, R].
        """
        shape = (len(hidden), self._rows)
        if out is not None and out.shape == shape and out.dtype == torch.float32:
            wide = out.fill_(INACTIVE)
        else:
            wide = torch.full(shape, INACTIVE, device=hidden.device)
        slots = (head or self._head).slot_logits(hidden)
        # The largest, not the last: several empty slots share column 0.
        return wide.scatter_reduce_(1, self._columns.expand_as(slots), slots, "amax")
