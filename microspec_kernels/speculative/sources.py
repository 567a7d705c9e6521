"""Where an active vocabulary's tokens come from: one short list, to be read and to be changed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """What one pass of the target showed.

    `tokens` int64 [n] went in: the prompt, or a tree with its root. `best` int64 [n, t] came out:
    after each of them the target's t likeliest next tokens, the likeliest first.
    """

    tokens: Tensor
    best: Tensor


@dataclass(frozen=True)
class Source:
    """Takes tokens from a kind of pass: `take` gives int64 [n, c], a row per token that went in.

    `best` is how many of the target's likeliest tokens it wants to see at every row; beyond the
    argmax that costs a top-k over V, and in the prompt logits for every row.
    """

    name: str
    stage: Literal["prompt", "step"]
    best: int
    take: Callable[[Seen], Tensor]


def went_in(seen: Seen) -> Tensor:
    return seen.tokens[:, None]


def argmax(seen: Seen) -> Tensor:
    return seen.best[:, :1]


def top3(seen: Seen) -> Tensor:
    """The likeliest last: the newest is what an LRU vocabulary forgets last."""
    return seen.best[:, :3].flip(1)


# MicroSpec's sources (arXiv 2605.26444). The pinned floor is not here: it never changes.
SOURCES = (
    Source("prompt", "prompt", 0, went_in),
    Source("prompt_top3", "prompt", 3, top3),
    Source("tree", "step", 0, went_in),
    Source("argmax", "step", 1, argmax),
    Source("top3", "step", 3, top3),
)


def take(sources: Iterable[Source], seen: Seen) -> Tensor:
    """All sources' tokens, int64 [N], by the row they belong to: a later row is newer."""
    columns = [source.take(seen) for source in sources]
    return torch.cat(columns, dim=1).flatten() if columns else seen.tokens[:0]
