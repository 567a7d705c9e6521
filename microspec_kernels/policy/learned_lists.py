# SPDX-License-Identifier: Apache-2.0
"""Lists of frequent tokens that are counted on the device while texts are written."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import vocab_count_
from ..tally import Tally, num_words
from ..vocab import ActiveVocab
from .defaults import NUM_LISTS
from .prior import token_ranks

# α, the weight in texts of what all prompts have in common against a list's own prompts. 4 was as
# good as 1 or better on every order of the recorded traces, and 16 no better (docs/policy.md).
COMMON_TEXTS = 4.0


class LearnedLists:
    """Counts in how many texts each token stood that the target wrote, in several lists.

    A request belongs to one list. :meth:`begin` chooses the list whose prompts are the likest to
    the request's own, or an empty one if none is like it. :meth:`count` counts the text's tokens.
    :meth:`fill` and :meth:`pin` bring the tokens of the most texts into an :class:`ActiveVocab`.
    Tokens with equal counts in a list follow in the order of all lists' counts, then in that of
    the prior. All state is on the device, and no method reads a value back to the host.

    Nothing but counts of tokens is kept: no text, no order of tokens, nothing about a request.

    Args:
        vocab_size: V, number of tokens of the tokenizer.
        num_lists: number of lists, C. With one list nothing is chosen, and prompts are not counted.
        num_requests: number of texts that run at a time, R.
        prior: token ids, the most frequent first, that lead where nothing has been counted. The
            others follow in the order of their ids; the tokens of a BPE vocabulary are numbered in
            the order of their merges. See :func:`prior_of_tokenizer`.
        device: device of the state.

    Attributes:
        tally: the counts, which :func:`~.vocab_observe_` takes to judge and count. :meth:`reserve`
            replaces it.
        prompt_counts: int32 [C, V], for each list the number of prompts with each token.
        num_texts: int64 [C], number of texts that began in each list.
        token_ranks: int32 [V], each token's place in the prior's order.

    Raises:
        ValueError: a size below 1; a repeated or out-of-range token of the prior.
        TypeError: a prior that is not integers.
    """

    # Inference tensors could not be updated in place outside inference mode.
    @torch.inference_mode(False)
    def __init__(
        self,
        vocab_size: int,
        *,
        num_lists: int = NUM_LISTS,
        num_requests: int = 1,
        prior: Tensor | Sequence[int] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        for name, size in (
            ("vocab_size", vocab_size),
            ("num_lists", num_lists),
            ("num_requests", num_requests),
        ):
            if size < 1:
                raise ValueError(f"LearnedLists: {name}: expected at least 1, got {size}")
        self.vocab_size, self.num_lists, self.num_requests = vocab_size, num_lists, num_requests
        self.token_ranks = token_ranks(prior, vocab_size).to(device)

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.tally = Tally(
            vocab_size, num_lists=num_lists, num_requests=num_requests, device=device
        )
        self.prompt_counts = zeros(num_lists, vocab_size)
        several = num_lists > 1
        self._prompt_totals = zeros(vocab_size) if several else None
        self.num_texts = zeros(num_lists, dtype=torch.int64)
        self._seen_in_prompt = zeros(1, num_words(vocab_size))

    @property
    def text_counts(self) -> Tensor:
        """int32 [C, V], for each list the number of texts with each token."""
        return self.tally.text_counts

    @property
    def total_counts(self) -> Tensor | None:
        """int32 [V], the same of all lists together; None if C = 1."""
        return self.tally.total_counts

    @property
    def request_lists(self) -> Tensor:
        """int32 [R], the list of each request; -1 before its text begins."""
        return self.tally.request_lists

    @property
    def seen(self) -> Tensor:
        """int32 [R, ceil(V / 32)], a bit for each token that a request's text has shown."""
        return self.tally.seen

    @torch.inference_mode(False)
    def reserve(self, num_requests: int) -> None:
        """Make room for as many texts that run at a time. It replaces tensors if it has less.

        Args:
            num_requests: the new R, unless R is larger.
        """
        if num_requests > self.num_requests:
            self.num_requests = num_requests
            self.tally = self.tally.with_room(num_requests)

    def begin(self, request: int, prompt: Tensor) -> None:
        """Begin a request's text, and choose its list.

        Args:
            request: number of the request, 0 to R - 1. Its last text ends.
            prompt: int32 or int64 [n], the prompt's tokens in any order; -1 is padding.

        Raises:
            IndexError: a number outside [0, R).
            ValueError, TypeError: a prompt of another shape, dtype or device.
        """
        self._check_request("begin", request)
        self.seen[request] = 0
        chosen = self.num_texts.new_zeros(1)
        if self.num_lists > 1:
            chosen = self._likest(prompt)
            vocab_count_(
                self.prompt_counts,
                self._seen_in_prompt.zero_(),
                prompt,
                request_lists=chosen,
                total_counts=self._prompt_totals,
            )
        self.num_texts.index_add_(0, chosen, torch.ones_like(chosen))
        self.request_lists[request] = chosen[0]

    def count(self, tokens: Tensor, *, token_requests: Tensor | None = None) -> None:
        """Count tokens that the target wrote. See :func:`~.vocab_count_`.

        Args:
            tokens: int32 or int64 [R, N], or [N] if R = 1 or with ``token_requests``; -1 is
                padding.
            token_requests: int32 or int64 [N], the request of each token; -1 ignores the token.

        Raises:
            ValueError, TypeError: as :func:`~.vocab_count_`.
        """
        vocab_count_(
            self.text_counts,
            self.seen,
            tokens,
            token_requests=token_requests,
            request_lists=self.request_lists,
            total_counts=self.total_counts,
        )

    def fill(self, vocab: ActiveVocab, request: int) -> None:
        """Fill a request's group with the first tokens of its list.

        Args:
            vocab: a vocabulary with a group for each request.
            request: number of the request and of its group. Before its text began, its list is
                the first.

        Raises:
            ValueError: a vocabulary of another size, or with another number of groups.
            IndexError: a number outside [0, R).
        """
        self._check(vocab, "fill", self.num_requests)
        self._check_request("fill", request)
        lists = torch.full_like(self.request_lists, -1)
        lists[request] = self.request_lists[request].clamp(min=0)
        vocab.refill(self.text_counts, self.token_ranks, lists, total_counts=self.total_counts)

    def pin(self, vocab: ActiveVocab, count: int, *, reset: bool = False) -> None:
        """Pin the tokens of the most texts of all lists, in a vocabulary that all requests share.

        Args:
            vocab: a vocabulary with one group.
            count: number of tokens to pin, 0 to K. The tokens that were pinned before and are not
                any more become the least recently used.
            reset: whether the rest of the vocabulary begins anew with the tokens that follow.

        Raises:
            ValueError: a vocabulary of another size, or with several groups; a count out of range.
        """
        self._check(vocab, "pin", 1)
        counts = self.text_counts if self.total_counts is None else self.total_counts[None]
        lists = torch.zeros(1, dtype=torch.int64, device=vocab.device)
        vocab.refill(counts, self.token_ranks, lists, pinned=count, reset=reset)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of what was learned.

        Returns:
            "text_counts" and "prompt_counts", int32 [C, V], and "num_texts", int64 [C].
        """
        return {name: tensor.clone() for name, tensor in self._learned().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy what :meth:`state_dict` returned, in place. Running texts go on.

        Raises:
            ValueError: a missing entry, one of another shape, or a negative count.
            TypeError: an entry of another dtype.
        """
        for name, tensor in self._learned().items():
            got = state.get(name)
            where, shape = f"LearnedLists: {name}: expected", list(tensor.shape)
            if got is None or got.shape != tensor.shape:
                found = "none" if got is None else list(got.shape)
                raise ValueError(f"{where} shape {shape}, got {found}")
            if got.dtype != tensor.dtype:
                raise TypeError(f"{where} {tensor.dtype}, got {got.dtype}")
            if got.numel() and int(got.min()) < 0:
                raise ValueError(f"{where} counts of at least 0, got {int(got.min())}")
        for name, tensor in self._learned().items():
            tensor.copy_(state[name])
        if self.total_counts is not None and self._prompt_totals is not None:
            self.total_counts.copy_(self.text_counts.sum(0))
            self._prompt_totals.copy_(self.prompt_counts.sum(0))

    def _likest(self, prompt: Tensor) -> Tensor:
        """Return the number of the list that fits a prompt best, int64 [1].

        A list's score is the naive Bayes log-likelihood ratio of the prompt's distinct tokens: how
        much likelier the list's prompts show them than all prompts do. An empty list scores 0, so
        it is chosen before lists that fit worse than the average.
        """
        assert self._prompt_totals is not None
        tokens = prompt.long().sort().values
        inside = (tokens >= 0) & (tokens < self.vocab_size)
        first = torch.ones_like(inside)
        first[1:] = tokens[1:] != tokens[:-1]
        tokens = tokens.where(inside, 0)
        texts = self.num_texts.double()[:, None]
        common = (self._prompt_totals[tokens].double() + 0.5) / (texts.sum() + 1)
        own = self.prompt_counts[:, tokens].double()
        ratio = (own / common + COMMON_TEXTS) / (texts + COMMON_TEXTS)
        return ratio.log().where(first & inside, 0).sum(1).argmax(0, keepdim=True)

    def _learned(self) -> dict[str, Tensor]:
        return {
            "text_counts": self.text_counts,
            "prompt_counts": self.prompt_counts,
            "num_texts": self.num_texts,
        }

    def _check_request(self, method: str, request: int) -> None:
        if not 0 <= request < self.num_requests:
            where, most = f"LearnedLists: {method}: request", self.num_requests - 1
            raise IndexError(f"{where}: expected 0 to {most}, got {request}")

    def _check(self, vocab: ActiveVocab, method: str, num_groups: int) -> None:
        want, got = (self.vocab_size, num_groups), (vocab.vocab_size, vocab.num_groups)
        if got != want:
            where = f"LearnedLists: {method}: vocab"
            raise ValueError(f"{where}: expected (V, G) = {want}, got {got}")
