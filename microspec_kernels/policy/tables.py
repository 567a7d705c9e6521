# SPDX-License-Identifier: Apache-2.0
"""Compute the list of frequent tokens and tables of related tokens in advance.

A table is int32 [V, c]: row t lists the relatives of token t, the likeliest first; -1 is padding.
"""

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


def variants(texts: Sequence[str | None]) -> Tensor:
    """Build a table of each token's variants in case and leading space.

    Variants are the same word with or without a leading space, as it stands, in lower case,
    capitalised or in upper case.

    Args:
        texts: the text of each token, by id; None for tokens without one (special tokens, parts of
            a character).

    Returns:
        int32 [V, c] on the CPU. Variants with the token's own leading space, or lack of it, come
        first. c is the largest number of variants of a token, at most 7.
    """
    ids: dict[str, int] = {}
    for token, text in enumerate(texts):
        if text is not None:
            ids.setdefault(text, token)
    rows = [
        [] if text is None else [ids[form] for form in _forms(text) if form in ids]
        for text in texts
    ]
    width = max(map(len, rows), default=0)
    padded = [row + [-1] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int32, device="cpu").view(len(rows), width)


def _forms(text: str) -> list[str]:
    """List the variants of a text: its own leading space first, then its own case first."""
    core = text.removeprefix(" ")
    spaces = (" ", "") if text.startswith(" ") else ("", " ")
    cases = dict.fromkeys((core, core.lower(), core.capitalize(), core.upper()))
    forms = [space + case for space in spaces for case in cases]
    return [form for form in forms if form not in ("", text)]


def successors(texts: Iterable[Tensor], vocab_size: int, count: int) -> Tensor:
    """Build a table of the tokens that most often follow each token in a corpus.

    Args:
        texts: int64 or int32 [n] each, ids in [0, vocab_size).
        vocab_size: V.
        count: c, number of successors per token.

    Returns:
        int32 [V, count] on the CPU, the most frequent first; equally frequent ones by token id.

    Raises:
        ValueError: count or vocab_size below 1, or a token outside the vocabulary.
        TypeError: tokens that are not integers.
    """
    for name, value in (("vocab_size", vocab_size), ("count", count)):
        if value < 1:
            raise ValueError(f"successors: {name}: expected at least 1, got {value}")
    pairs = []
    for text in texts:
        tokens = token_ids("successors: texts", text, vocab_size, distinct=False)
        pairs.append(tokens[:-1] * vocab_size + tokens[1:])
    table = torch.full((vocab_size, count), -1, dtype=torch.int32, device="cpu")
    if not pairs:
        return table
    pair, times = torch.cat(pairs).unique(return_counts=True)
    order = times.argsort(descending=True, stable=True)
    order = order[(pair[order] // vocab_size).argsort(stable=True)]
    token, follower = pair[order] // vocab_size, pair[order] % vocab_size
    begins = torch.searchsorted(token, torch.arange(vocab_size, device="cpu"))
    rank = torch.arange(len(token), device="cpu") - begins[token]
    kept = rank < count
    table[token[kept], rank[kept]] = follower[kept].int()
    return table


def neighbours(weight: Tensor, count: int, *, cosine: bool = True, chunk: int = 256) -> Tensor:
    """Build a table of the nearest rows of an LM head to each row.

    Args:
        weight: [V, D], floating point.
        count: c, number of neighbours per token, at most V - 1.
        cosine: compare rows by cosine similarity; otherwise by dot product.
        chunk: number of rows that are compared with all V rows at a time.

    Returns:
        int32 [V, count] on the weight's device, the nearest first, without the token itself.

    Raises:
        ValueError: a weight of another shape; count or chunk out of range.
    """
    if weight.dim() != 2:
        raise ValueError(f"neighbours: weight: expected shape [V, D], got {list(weight.shape)}")
    for name, value, most in (("count", count, len(weight) - 1), ("chunk", chunk, None)):
        if value < 1 or (most is not None and value > most):
            limit = "at least 1" if most is None else f"in [1, {most}]"
            raise ValueError(f"neighbours: {name}: expected {limit}, got {value}")
    lengths = weight.norm(dim=1, dtype=torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
    nearest = []
    for begin in range(0, len(weight), chunk):
        scores = (weight[begin : begin + chunk] @ weight.T).float()
        if cosine:
            scores /= lengths  # dividing by the row's own length would not change the order
        scores.diagonal(begin).fill_(-torch.inf)
        nearest.append(scores.topk(count).indices.int())
    return torch.cat(nearest)
