# SPDX-License-Identifier: Apache-2.0
"""Begin each request with the tokens that earlier texts showed."""

from dataclasses import replace

from torch import Tensor

from ..vocab import ActiveVocab
from .auto_capacity import AutoCapacity
from .capacity import StepCosts
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
        costs: what a step reads; K is then chosen by it (:attr:`auto`), up to the slots of
            ``vocab``, and changes when a request begins. Its `shared` follows from ``vocab``. None:
            K is the number of slots. The level of the coverage is that of the lists' verdicts, if
            the caller counts with :func:`~.vocab_observe_`; else it is the expected one.

    Attributes:
        auto: chooses K; None without costs.

    Raises:
        ValueError: another number of groups, or another vocabulary size.
    """

    def __init__(
        self,
        vocab: ActiveVocab,
        lists: LearnedLists,
        costs: StepCosts | None = None,
    ) -> None:
        self.vocab, self.lists = vocab, lists
        self._begun = 0
        self._limits = [vocab.capacity] * vocab.num_groups  # of each group, as the host knows it
        self.auto: AutoCapacity | None = None
        if vocab.num_groups not in (1, lists.num_requests):
            expected = f"1 group or {lists.num_requests}, one for each request"
            raise ValueError(f"LearnedVocab: vocab: expected {expected}, got {vocab.num_groups}")
        if costs is not None:
            costs = replace(costs, shared=vocab.num_groups == 1)
            largest, has_floor = vocab.capacity, self.shared
            self.auto = AutoCapacity(costs, lists, largest=largest, has_floor=has_floor)
            for group in range(vocab.num_groups):
                self._set_limit(group)
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
        return int(FLOOR_SHARE * self._limits[0])

    def reserve(self, num_requests: int) -> None:
        """Make room for as many texts that run at a time. A single group becomes shared.

        Args:
            num_requests: see :meth:`LearnedLists.reserve`.

        Raises:
            ValueError: more requests than groups, if there are several.
        """
        if 1 < self.vocab.num_groups < num_requests:
            expected = f"at most {self.vocab.num_groups}, one for each group"
            raise ValueError(f"LearnedVocab: num_requests: expected {expected}, got {num_requests}")
        shared = self.shared
        self.lists.reserve(num_requests)
        if self.shared and not shared:
            self.lists.pin(self.vocab, self.floor)

    def of_prompt(self, tokens: Tensor) -> Tensor:
        """Return the tokens of a prompt that may enter the vocabulary.

        Args:
            tokens: int32 or int64 [n], the prompt's tokens, the newest last.

        Returns:
            All tokens, or the newest :data:`~.PROMPT_SHARE` · K of them if the vocabulary is
            shared.
        """
        most = max(1, int(PROMPT_SHARE * self._limits[0]))
        return tokens[-most:] if self.shared else tokens

    def begin(self, request: int, prompt: Tensor) -> None:
        """Begin a request's text. Add :meth:`of_prompt` to the vocabulary afterwards.

        Args:
            request: number of the request, 0 to R - 1.
            prompt: int32 or int64 [n], the prompt's tokens in any order; -1 is padding.

        Raises:
            IndexError, ValueError, TypeError: as :meth:`LearnedLists.begin`.
        """
        if self.auto is not None:
            self.auto.begin(request, prompt)
        self.lists.begin(request, prompt)
        self._begun += 1
        changed = self._set_limit(0 if self.shared else request)
        if not self.shared:
            self.lists.fill(self.vocab, request)
        elif changed or self._begun % TEXTS_PER_FLOOR == 0:
            self.lists.pin(self.vocab, self.floor)

    def _set_limit(self, group: int) -> bool:
        """Set a group's K, and return whether it changed."""
        limit = self._limits[group] if self.auto is None else self.auto.limit
        changed = limit != self._limits[group]
        if changed:
            self.vocab.set_limit(limit, [group])
            self._limits[group] = limit
        return changed
