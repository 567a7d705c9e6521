# SPDX-License-Identifier: Apache-2.0
"""Measure how many tokens vocabularies of other sizes would have missed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .capacity import MISSES_AT, expected_misses
from .defaults import FLOOR_SHARE
from .learned_lists import LearnedLists

# The curve that was expected counts as so many missed tokens, and the expected misses as so many
# counted tokens: about one text.
CURVE_WEIGHT, COVERAGE_WEIGHT = 64.0, 256.0
FIELD = 21  # bits of a count and of a rank in a sort key: three of them fill an int64


class CoverageCurve:
    """Counts, as texts are written, the tokens that each size of vocabulary would have missed.

    It follows one text at a time, from its prompt to its end. A vocabulary that begins with the
    first K tokens of the text's list misses a token that neither is among them, nor stood in the
    prompt, when the text shows it for the first time. So the places of these tokens in the list's
    order give the misses of every K at once, whatever the size in use. All state is on the device,
    and no method reads a value back to the host.

    Args:
        lists: the learned lists that fill the vocabulary.
        sizes: the K to judge, ascending, at most V.
        has_floor: whether :data:`~.FLOOR_SHARE` of the vocabulary is pinned in the order of all
            lists together, rather than all of it filled in that of one list.

    Attributes:
        misses: int64 [S], tokens that each size would have missed.
    """

    @torch.inference_mode(False)  # a tensor made in inference mode cannot be updated outside it
    def __init__(self, lists: LearnedLists, sizes: Sequence[int], *, has_floor: bool) -> None:
        self.sizes, self._lists, self._has_floor = tuple(sizes), lists, has_floor
        device = lists.text_counts.device
        self.misses = torch.zeros(len(self.sizes), dtype=torch.int64, device=device)
        share = FLOOR_SHARE if has_floor else 1.0
        last = [max(1, int(share * size)) - 1 for size in self.sizes]
        self._last = torch.tensor(last, dtype=torch.int64, device=device)
        self._in_prompt = torch.zeros(lists.vocab_size + 1, dtype=torch.bool, device=device)
        self._bits = torch.arange(32, dtype=torch.int32, device=device)
        self._followed: int | None = None

    def reset(self) -> None:
        """Forget all misses and the followed text."""
        self.misses.zero_()
        self._followed = None

    def begin(self, request: int, prompt: Tensor) -> None:
        """End the followed text if it was the request's, and follow a new one if none is followed.

        Call before :meth:`LearnedLists.begin`.

        Args:
            request, prompt: as for :meth:`LearnedLists.begin`.
        """
        if self._followed == request:
            self._judge(request)
            self._followed = None
        if self._followed is None:
            vocab_size = self._lists.vocab_size
            tokens = prompt.long()
            inside = (tokens >= 0) & (tokens < vocab_size)
            self._in_prompt.zero_().index_fill_(0, tokens.where(inside, vocab_size), True)
            self._followed = request

    def _judge(self, request: int) -> None:
        lists, vocab_size = self._lists, self._lists.vocab_size
        words = lists.seen[request]
        seen = (words[:, None] >> self._bits & 1).flatten()[:vocab_size]
        new = (seen > 0) & ~self._in_prompt[:-1]
        which = lists.request_lists[request : request + 1].clamp(min=0)
        own = lists.text_counts.index_select(0, which)[0]
        total = own if lists.total_counts is None else lists.total_counts
        if self._has_floor:
            own = total
        # The order before this text: its own tokens were counted in both.
        most = (1 << FIELD) - 1
        own, total = ((counts - seen).clamp(0, most).long() for counts in (own, total))
        key = (own << 2 * FIELD) + (total << FIELD) + (most - lists.token_ranks.long())
        covered = new[key.argsort(descending=True)].cumsum(0)
        self.misses += covered[-1] - covered[self._last]


def misses_of_sizes(
    sizes: Sequence[int],
    curve: Sequence[int],
    *,
    at: int,
    hits: int,
    misses: int,
    num_requests: int = 1,
) -> dict[int, float]:
    """Return the share of tokens that each size misses, of what was expected and measured.

    The curve gives the shape, and the vocabulary in use the level: it evicts, and tokens enter it
    that a text shows only later.

    Args:
        sizes, curve: as :attr:`CoverageCurve.sizes` and :attr:`CoverageCurve.misses`, on the host.
        at: the size in use, one of ``sizes``.
        hits, misses: counted tokens that were active, and that were not, at that size.
        num_requests: requests that share the vocabulary.
    """
    expected = {size: expected_misses(size, num_requests) for size in sizes}
    level = (misses + COVERAGE_WEIGHT * expected[at]) / (hits + misses + COVERAGE_WEIGHT)
    scale = CURVE_WEIGHT / expected_misses(MISSES_AT, num_requests)
    shape = {size: count + scale * expected[size] for size, count in zip(sizes, curve, strict=True)}
    return {size: min(1.0, level * shape[size] / shape[at]) for size in sizes}
