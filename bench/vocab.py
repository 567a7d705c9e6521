"""vocab_update_: what keeping the active vocabulary up to date costs a step.

python -m bench.vocab [--quick] [--device cpu|cuda] [--out DIR]
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import microspec_kernels as mk
from microspec_kernels.timing import time_arms

from . import gpu_vocab, options

VOCAB_SIZE, CAPACITY, TOKENS = 128256, 3072, 300
LONG = (10**5, 10**6)


def on_cpu(quick: bool) -> list[dict[str, Any]]:
    vocab, flooded = (mk.ActiveVocab(VOCAB_SIZE, CAPACITY) for _ in range(2))
    vocab.update(torch.randint(VOCAB_SIZE, (2 * CAPACITY,)))
    known = vocab.ids[0, torch.randperm(CAPACITY)[:TOKENS]].long()
    # Always new: every call lets 300 tokens in and 300 out, the most that a step can ask for.
    fresh = iter(torch.randint(VOCAB_SIZE, (10**4, TOKENS)))
    arms: dict[str, Callable[[], object]] = {
        f"vocab_update_, {TOKENS} tokens, all new": lambda: vocab.update(next(fresh)),
        f"vocab_update_, {TOKENS} tokens, all active": lambda: vocab.update(known),
    }
    # The walk stops early: only the check of the ids grows, at the cost of an aminmax. Apart from
    # the others, whose memory they would push out of the caches.
    long: dict[str, Callable[[], object]] = {}
    for count in LONG:
        tokens = torch.randint(VOCAB_SIZE, (count,))
        long[f"vocab_update_, {count:.0e} tokens"] = partial(flooded.update, tokens)
        long[f"torch.aminmax of {count:.0e} tokens"] = partial(torch.aminmax, tokens)
    rounds = 11 if quick else 301
    times = time_arms(arms, rounds) | time_arms(long, rounds)
    shape = {"V": VOCAB_SIZE, "K": CAPACITY}
    return [{**shape, "arm": name, **time.in_us()} for name, time in times.items()]


if __name__ == "__main__":
    options.run(__doc__, "vocab", on_cpu, gpu_vocab.measure)
