# SPDX-License-Identifier: Apache-2.0
"""Texts that join and leave a batch, and the loop over the batch's steps."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from microspec_kernels.speculative import Batch, CausalModel, Request, Sampling
from microspec_kernels.speculative.alone import target_alone

from . import models
from .models import example, greedy, noisy

SHAPE = {"depth": 3, "tree_width": 4, "tree_size": 12}
LONGEST = 12

draft_of = cache(lambda kind: noisy(example(kind)[0]))


def pair(kind: str = "llama", ends: Iterable[int] = ()) -> tuple[CausalModel, Any]:
    """Return a target whose texts end at any of `ends`, and a draft."""
    target = CausalModel(example(kind)[0])
    target.eos = frozenset(ends)
    return target, draft_of(kind)


@cache
def truth(kind: str, length: int, sampling: Sampling) -> list[int]:
    """Return the target's own continuation of the prompt of that length.

    `transformers` computes it if it is greedy.
    """
    text = models.prompt(length, seed=length)
    if sampling.temperature == 0:
        return greedy(example(kind)[0], text, LONGEST).tolist()
    return target_alone(pair(kind)[0], text[0], LONGEST, sampling).tokens.tolist()


@dataclass(frozen=True)
class Text:
    """A prompt's length, which determines it, the maximum of new tokens, and the first step."""

    length: int
    count: int
    joins: int = 0
    seed: int = 0


def run(
    batch: Batch, texts: list[Text], before: Callable[[dict[Request, Text]], None] | None = None
) -> list[Request]:
    """Continue the texts. They join in order, at their step or later, once a group is free.

    `before` is called before each step with the running requests and their texts.
    """
    requests: dict[Request, Text] = {}
    waiting, step = list(texts), 0
    while waiting or batch.requests:
        while waiting and waiting[0].joins <= step and batch.free_groups:
            text = waiting.pop(0)
            ids = models.prompt(text.length, seed=text.length)
            requests[batch.join(ids, text.count, seed=text.seed)] = text
        there = {request: requests[request] for request in batch.requests}
        if before is not None:
            before(there)
        left = batch.step()
        assert left == [request for request in there if request.done]
        assert batch.requests == [request for request in there if not request.done]
        step += 1
    return list(requests)


def figures(request: Request) -> tuple[list[int], list[int], list[int], int]:
    stats = request.stats
    return request.tokens, stats.acceptance_lengths, stats.active_sizes, stats.covered
