"""What is counted or computed beforehand: a ranking of tokens, and tables of relatives.

A table is int32 [V, c]: of each token, the likeliest relative first; -1 is nothing.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from microspec_kernels._token_ids import token_ids


def frequency_rank(
    texts: Iterable[Tensor], vocab_size: int, prior: Tensor | Sequence[int] = ()
) -> Tensor:
    """Tokens by how many texts they stand in, the most first: what a vocabulary may begin with.

    Texts count, not occurrences: a token that fills one text says little about the next.

    Args:
        texts: int64 or int32 [n] each, ids in [0, vocab_size); best of one's own traffic.
        vocab_size: V.
        prior: distinct ids by falling frequency elsewhere: orders the tokens of equally many texts,
            and follows with those of none. Without one, both go by id.

    Returns:
        int64 [S] on the CPU, distinct: the tokens that stand in a text or in the prior.

    Raises:
        ValueError: a token outside the vocabulary, or repeated in the prior.
        TypeError: tokens that are not integers.
    """
    count = torch.zeros(vocab_size, dtype=torch.int64, device="cpu")
    for text in texts:
        tokens = token_ids("frequency_rank: texts", text, vocab_size, distinct=False)
        count[tokens.unique()] += 1
    known = token_ids("frequency_rank: prior", prior, vocab_size)
    place = torch.full((vocab_size,), vocab_size, device="cpu")
    place[known] = torch.arange(len(known), device="cpu")
    order = place.argsort(stable=True)
    order = order[count[order].argsort(descending=True, stable=True)]
    return order[(count[order] > 0) | (place[order] < vocab_size)]


def variants(texts: Sequence[str | None]) -> Tensor:
    """The same word with or without a leading space, in lower case, capitalised or in capitals.

    Args:
        texts: each token's text, by id; None for tokens without one (special ones, parts of a
            character).

    Returns:
        int32 [V, c], c the most variants that a token has, at most 7: those that keep the token's
        space first.
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
    """Other ways to write a token's text: case as it stands before others, so with its space."""
    core = text.removeprefix(" ")
    spaces = (" ", "") if text.startswith(" ") else ("", " ")
    cases = dict.fromkeys((core, core.lower(), core.capitalize(), core.upper()))
    forms = [space + case for space in spaces for case in cases]
    return [form for form in forms if form not in ("", text)]


def successors(texts: Iterable[Tensor], vocab_size: int, count: int) -> Tensor:
    """What followed each token most often in a corpus.

    Args:
        texts: int64 or int32 [n] each, ids in [0, vocab_size).
        vocab_size: V.
        count: c, successors a token.

    Returns:
        int32 [V, count] on the CPU; equally frequent ones by token id.

    Raises:
        ValueError: a count or a vocabulary below 1, or a token outside it.
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
    """The rows of an LM head that are nearest to each row.

    Args:
        weight: [V, D], floating point.
        count: c, neighbours a token, at most V - 1.
        cosine: by the angle between rows; otherwise by their dot product.
        chunk: rows compared with all of V at a time.

    Returns:
        int32 [V, count] on the weight's device, the nearest first, the token itself left out.

    Raises:
        ValueError: a weight of another shape; a count or chunk out of range.
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
            scores /= lengths  # the row's own length changes nothing in its order
        scores.diagonal(begin).fill_(-torch.inf)
        nearest.append(scores.topk(count).indices.int())
    return torch.cat(nearest)
