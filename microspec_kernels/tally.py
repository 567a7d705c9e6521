# SPDX-License-Identifier: Apache-2.0
"""`Tally`: where :func:`~.vocab_observe_` counts, in one tensor."""

import torch
from torch import Tensor

VERDICT_WORDS = 4  # int32 words of a request's two verdicts


class Tally:
    """The verdicts on texts, and in how many texts each token stood.

    All counters are parts of one tensor, because each tensor of a call takes PyTorch half a
    microsecond. The layout is that of csrc/vocab/observe_args.h.

    Args:
        vocab_size: V, number of tokens of the vocabulary.
        num_lists: number of lists in which texts are counted, C. With 0 there are only verdicts.
        num_requests: number of texts that run at a time, R.
        device: device of the counters.

    Attributes:
        data: int32 [n], all of it. The others are views.
        verdicts: int64 [2, R], written tokens that were active, and that were not.
        request_lists: int32 [R], the list of each request; -1, as at first: it is not counted.
        seen: int32 [R, ceil(V / 32)], a bit for each token that a request's text has shown.
        text_counts: int32 [C, V], for each list the number of texts with each token.
        total_counts: int32 [V], the same of all lists together; None if C < 2.

    Raises:
        ValueError: a size below 1, or num_lists below 0.
    """

    verdicts: Tensor
    request_lists: Tensor
    seen: Tensor
    text_counts: Tensor
    total_counts: Tensor | None

    # Inference tensors could not be updated in place outside inference mode.
    @torch.inference_mode(False)
    def __init__(
        self,
        vocab_size: int,
        *,
        num_lists: int = 0,
        num_requests: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        sizes = {"vocab_size": vocab_size, "num_requests": num_requests, "num_lists": num_lists}
        for name, size in sizes.items():
            least = int(name != "num_lists")
            if size < least:
                raise ValueError(f"Tally: {name}: expected at least {least}, got {size}")
        per_request, tables = tally_words(num_lists, vocab_size)
        total = per_request * num_requests + tables
        self._set(torch.zeros(total, dtype=torch.int32, device=device), vocab_size, num_lists)
        self.request_lists.fill_(-1)

    @classmethod
    def over(cls, data: Tensor, vocab_size: int, num_lists: int) -> "Tally":
        """Return the tally whose :attr:`data` this is."""
        tally = cls.__new__(cls)
        tally._set(data, vocab_size, num_lists)
        return tally

    def _set(self, data: Tensor, vocab_size: int, num_lists: int) -> None:
        per_request, tables = tally_words(num_lists, vocab_size)
        requests = (len(data) - tables) // per_request
        self.data, self.num_lists = data, num_lists
        listed = num_lists > 0
        verdicts, lists, seen, counts, total = data.split(
            (
                VERDICT_WORDS * requests,
                requests * listed,
                requests * listed * num_words(vocab_size),
                num_lists * vocab_size,
                (num_lists > 1) * vocab_size,
            )
        )
        self.verdicts = verdicts.view(torch.int64).view(2, requests)
        self.request_lists = lists
        self.seen = seen.view(requests, -1)
        self.text_counts = counts.view(num_lists, vocab_size)
        self.total_counts = total if num_lists > 1 else None

    def with_room(self, num_requests: int) -> "Tally":
        """Return a tally for more texts that run at a time, with the same counts."""
        size = self.text_counts.size(1)
        tally = Tally(
            size, num_lists=self.num_lists, num_requests=num_requests, device=self.data.device
        )
        running = self.verdicts.size(1)
        tally.verdicts[:, :running] = self.verdicts
        tally.request_lists[:running] = self.request_lists
        tally.seen[:running] = self.seen
        tally.text_counts.copy_(self.text_counts)
        if tally.total_counts is not None and self.total_counts is not None:
            tally.total_counts.copy_(self.total_counts)
        return tally


def num_words(vocab_size: int) -> int:
    """Return W, the int32 words of a bit for each token."""
    return (vocab_size + 31) // 32


def tally_words(num_lists: int, vocab_size: int) -> tuple[int, int]:
    """Return the int32 words of a tally that each request has, and those of its tables."""
    per_request = VERDICT_WORDS + (1 + num_words(vocab_size) if num_lists else 0)
    return per_request, (num_lists + (num_lists > 1)) * vocab_size
