# SPDX-License-Identifier: Apache-2.0
"""Count the list of frequent tokens that a vocabulary begins with."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from microspec_kernels._token_ids import token_ids


def count_frequent_tokens(
    texts: Iterable[Tensor], vocab_size: int, prior: Tensor | Sequence[int] = ()
) -> Tensor:
    """List tokens by the number of texts that contain them, the most frequent first.

    The function counts texts, not occurrences: a token that fills one text says little about the
    next text.

    Args:
        texts: int64 or int32 [n] each, ids in [0, vocab_size); preferably from your own traffic.
        vocab_size: V.
        prior: the frequent tokens of another corpus, distinct ids, the most frequent first. Its
            order breaks ties between tokens with equal counts. Its tokens that are in no text
            follow at the end. Without a prior, ties are in the order of ids.

    Returns:
        int64 [S] on the CPU, distinct: the tokens that are in a text or in the prior.

    Raises:
        ValueError: a token outside the vocabulary, or repeated in the prior.
        TypeError: tokens that are not integers.
    """
    count = torch.zeros(vocab_size, dtype=torch.int64, device="cpu")
    for text in texts:
        tokens = token_ids("count_frequent_tokens: texts", text, vocab_size, distinct=False)
        count[tokens.unique()] += 1
    prior_tokens = token_ids("count_frequent_tokens: prior", prior, vocab_size)
    prior_order = torch.full((vocab_size,), vocab_size, device="cpu")
    prior_order[prior_tokens] = torch.arange(len(prior_tokens), device="cpu")
    order = prior_order.argsort(stable=True)
    order = order[count[order].argsort(descending=True, stable=True)]
    return order[(count[order] > 0) | (prior_order[order] < vocab_size)]
