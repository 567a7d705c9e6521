# SPDX-License-Identifier: Apache-2.0
"""Begin each request with the tokens that earlier texts showed."""

from torch import Tensor

from ..vocab import ActiveVocab
from .defaults import FLOOR_SHARE, PROMPT_SHARE, TEXTS_PER_FLOOR
from .learned_lists import LearnedLists


class LearnedVocab:
    """An active vocabulary that is filled from learned lists, without the host.

    If the vocabulary has a group for each request, :meth:`begin` fills the request's group from
    the list that its prompt chooses; the text's own tokens then replace the rarest. If all requests
    share one group, the tokens of the most texts are pinned in :data:`~.FLOOR_SHARE` of its slots,
    anew for every :data:`~.TEXTS_PER_FLOOR` requests, and the rest is an LRU.

    Args:
        vocab: the active vocabulary, with one group or with a group for each request.
        lists: the learned lists. Their number of requests is that of texts that run at a time.

    Raises:
        ValueError: another number of groups, or another vocabulary size.
    """

    def __init__(self, vocab: ActiveVocab, lists: LearnedLists) -> None:
        self.vocab, self.lists = vocab, lists
        self._begun = 0
        if vocab.num_groups not in (1, lists.num_requests):
            expected = f"1 group or {lists.num_requests}, one for each request"
            raise ValueError(f"LearnedVocab: vocab: expected {expected}, got {vocab.num_groups}")
        self.refill()

    def refill(self) -> None:
        """Fill every group anew, as the constructor does."""
        if self.shared:
            self.lists.pin(self.vocab, self.floor, reset=True)
        else:
            for request in range(self.lists.num_requests):
                self.lists.fill(self.vocab, request)

    @property
    def shared(self) -> bool:
        """Whether several requests share one group."""
        return self.vocab.num_groups < self.lists.num_requests

    @property
    def floor(self) -> int:
        """Number of pinned tokens of a shared vocabulary."""
        return int(FLOOR_SHARE * self.vocab.capacity)

    def of_prompt(self, tokens: Tensor) -> Tensor:
        """Return the tokens of a prompt that may enter the vocabulary.

        Args:
            tokens: int32 or int64 [n], the prompt's tokens, the newest last.

        Returns:
            All tokens, or the newest :data:`~.PROMPT_SHARE` · K of them if the vocabulary is
            shared.
        """
        most = max(1, int(PROMPT_SHARE * self.vocab.capacity))
        return tokens[-most:] if self.shared else tokens

    def begin(self, request: int, prompt: Tensor) -> None:
        """Begin a request's text. Add :meth:`of_prompt` to the vocabulary afterwards.

        Args:
            request: number of the request, 0 to R - 1.
            prompt: int32 or int64 [n], the prompt's tokens in any order; -1 is padding.

        Raises:
            IndexError, ValueError, TypeError: as :meth:`LearnedLists.begin`.
        """
        self.lists.begin(request, prompt)
        self._begun += 1
        if not self.shared:
            self.lists.fill(self.vocab, request)
        elif self._begun % TEXTS_PER_FLOOR == 0:
            self.lists.pin(self.vocab, self.floor)
