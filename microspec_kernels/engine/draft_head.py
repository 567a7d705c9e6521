# SPDX-License-Identifier: Apache-2.0
"""The part of an `EngineHead` that a draft calls, in captured graphs too."""

from torch import Tensor

from microspec_kernels.head import SparseHead
from microspec_kernels.vocab import ActiveVocab

from .token_map import TokenMap


class DraftHead:
    """The draft's LM head over the active rows, with results as the target's tokens.

    Attributes:
        head: the head over rows.
        vocab: the active rows.
        token_map: the map between rows and the target's tokens.
    """

    head: SparseHead
    vocab: ActiveVocab
    token_map: TokenMap
    _never_empty: bool

    @classmethod
    def beside(cls, other: "DraftHead", head: SparseHead) -> "DraftHead":
        """Return another LM head over the vocabulary of `other`."""
        made = cls()
        made.head, made.vocab, made.token_map = head, other.vocab, other.token_map
        made._never_empty = other._never_empty
        return made

    def topk(
        self, hidden: Tensor, k: int, row_groups: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the draft's k best tokens of each row. May be captured.

        Args:
            hidden: [..., D], the input of the LM head.
            row_groups: int32 or int64 [...], each row's vocabulary, -1 for padding; None with one
                vocabulary. Like `hidden`, a buffer at a fixed address if the call is captured: a
                replay reads the values that it holds then.

        Returns:
            logits fp32 [..., k]; the target's token ids int64 [..., k]; logsumexp fp32 [...] over
            the active tokens. Logits are -inf and ids -1 for padding rows and where a vocabulary
            has fewer than k tokens.
        """
        logits, rows, logsumexp = self.head(hidden, k, row_groups)
        return logits, self.token_map.to_tokens(rows), logsumexp

    def argmax(self, hidden: Tensor, row_groups: Tensor | None = None) -> Tensor:
        """Return the draft's best token of each row, int64 [...]. May be captured.

        A row without an active token, as padding is, gets token 0: engines need a valid token id,
        and the target rejects a wrong one.

        Args:
            hidden, row_groups: as for :meth:`topk`.
        """
        rows = self.head.argmax(hidden, row_groups)
        return self.token_map.to_tokens(rows, default=-1 if self._never_empty else 0)

    def sample(
        self,
        hidden: Tensor,
        temperatures: Tensor,
        seeds: Tensor,
        positions: Tensor,
        row_groups: Tensor | None = None,
        *,
        token_logits: Tensor | None = None,
        logit_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw a token of each row from the draft's law, for rejection sampling. May be captured.

        Args:
            hidden, row_groups: as for :meth:`topk`.
            temperatures, seeds, positions, logit_rows: see
                :func:`~microspec_kernels.sparse_sample`.
            token_logits: [.., V], the logits before the temperature, by the target's token; written
                in place.

        Returns:
            the target's token ids int64 [...] and their log-probabilities fp32 [...]. A row without
            an active token, as padding is, gets token 0, as in :meth:`argmax`, and -inf.

        Raises:
            NotImplementedError: ranks share the head.
        """
        tokens, log_probs = self.head.sample(
            hidden,
            temperatures,
            seeds,
            positions,
            row_groups,
            row_tokens=self.token_map.row_tokens,
            token_logits=token_logits,
            logit_rows=logit_rows,
        )
        return tokens.clamp(min=0), log_probs

    def slot_logits(self, hidden: Tensor) -> Tensor:
        """Return a shared vocabulary's logits, for an engine that chooses among the slots itself.

        May be captured.

        Args:
            hidden: [..., D], the input of the LM head.

        Returns:
            fp32 [..., K], one column for each slot, -inf for empty slots.
        """
        return self.head.slot_logits(hidden)[0]

    def row_logits(self, hidden: Tensor, row_groups: Tensor | None = None) -> Tensor:
        """Return logits in the width of the whole LM head, -inf at rows that are not active.

        For an engine that draws among them and verifies with the same logits. May be captured.

        Args:
            hidden, row_groups: as for :meth:`topk`.

        Returns:
            fp32 [..., R], by the rows of the LM head on all ranks, not by the target's tokens.
        """
        logits, rows = self.head.logits(hidden, row_groups)
        count = self.vocab.vocab_size
        wide = logits.new_full((*logits.shape[:-1], count + 1), float("-inf"))
        # Empty slots write into one column more.
        return wide.scatter_(-1, rows.where(rows >= 0, count), logits)[..., :-1]

    def slot_tokens(self) -> Tensor:
        """Return the target's token in each slot: int64 [G, K], -1 for empty slots."""
        return self.token_map.to_tokens(self.vocab.ids.long())

    def reload(self) -> None:
        """Gather the slab again after the weight changed in place. Call outside capture."""
        slab = self.head.slab
        if slab is not None:
            slab.invalidate()
            self._gather()

    def _wait_for_gather(self) -> None:
        """Let the current stream wait for the last gather, which reads the vocabulary's ids."""
        if self.head.slab is not None:
            self.head.slab.wait()

    def _gather(self) -> None:
        """Gather beside the current stream; the draft's head waits, in captured graphs too."""
        self.head.follow()
        if self.head.slab is not None:
            self.head.slab.refresh_beside_graphs()
