"""vocab_update_ on a GPU: what keeping the active vocabulary up to date costs a step."""

import itertools
from typing import Any

import torch

import microspec_kernels as mk

from .cuda_graphs import CopyBandwidth, Replay, capture, row, time_replays
from .head_arms import id_sets

VOCAB_SIZE, CAPACITY, TOKENS = 128256, 3072, 300


class Update:
    """Every call takes other tokens: all of them new to the vocabulary, or all in it already."""

    CALLS = 64

    def __init__(self, vocab_size: int, capacity: int, new: bool, device: str) -> None:
        self.vocab = mk.ActiveVocab(vocab_size, capacity, device=device)
        self.vocab.update(torch.randperm(vocab_size, device=device)[: 2 * capacity])
        if new:  # more of them in a round than the vocabulary has room for
            self.sets = id_sets(vocab_size, TOKENS, self.CALLS, device)
        else:
            places = id_sets(capacity, TOKENS, self.CALLS, device)
            self.sets = [self.vocab.ids[0, own.long()] for own in places]
        self.turn = itertools.cycle(self.sets)

    def __call__(self) -> None:
        self.vocab.update(next(self.turn))

    def check(self, replay: Replay) -> None:
        """A replay against the CPU's op, which has its own tests against an LRU."""
        state = [tensor.cpu() for tensor in self.vocab.state_dict().values()]
        for tokens in self.sets:
            mk.vocab_update_(*state, tokens.cpu())
        self.turn = itertools.cycle(self.sets)  # as a graph does: it begins with the first
        replay.run()
        for got, want in zip(self.vocab.state_dict().values(), state, strict=True):
            assert torch.equal(got.cpu(), want), "vocab_update_"


def measure(
    quick: bool = False, rounds: int = 31, only: str = "", device: str = "cuda"
) -> list[dict[str, Any]]:
    vocab_size = 32000 if quick else VOCAB_SIZE
    replays: dict[str, Replay] = {}
    for kind in ("new", "active"):
        name = f"vocab_update_ of {TOKENS} tokens, all {kind}"
        if only in name:
            update = Update(vocab_size, CAPACITY, kind == "new", device)
            replays[name] = capture(update, update.CALLS)
            update.check(replays[name])
    # Stamps, ids and the tokens' slots, read or written once: a chain of latencies, really.
    least = CAPACITY * 12 + TOKENS * 24
    bandwidth = CopyBandwidth(device, 2**30 if device == "cuda" else 2**20)
    times = time_replays({**replays, bandwidth.NAME: bandwidth.replay()}, rounds)
    shape = {"V": vocab_size, "K": CAPACITY}
    copy = bandwidth.of(times)
    return [row(shape, "cold", name, times[name], least, copy) for name in replays]
