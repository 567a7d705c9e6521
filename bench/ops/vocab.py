# SPDX-License-Identifier: Apache-2.0
"""What do the ops that keep the active vocabulary up to date cost, in a step and for a request?

python -m bench.ops.vocab [--quick] [--device cpu|cuda] [--out DIR]
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import microspec_kernels as mk
from bench.harness import models, options
from bench.harness.bandwidth import CopyBandwidth, row
from bench.harness.cuda_graphs import Replay, capture, time_replays
from bench.harness.inputs import id_sets
from bench.harness.sizes import CAPACITY, QUICK_SHORT_ROUNDS, ROUNDS, SHORT_ROUNDS
from microspec_kernels import reference
from microspec_kernels.policy import LearnedLists
from microspec_kernels.timing import time_arms

VOCAB_SIZE = models.MODELS[models.DEFAULT].vocab_size
TOKENS = 300  # of a step
LONG = (10**5, 10**6)  # tokens of a long batch
WRITTEN = 5  # tokens of a step that continue its text
LARGEST_VOCAB = 262144  # of today's models; a refill sweeps over it
TEXTS, TEXT_TOKENS = 200, 600  # that were counted before a refill


def on_cpu(quick: bool) -> list[dict[str, Any]]:
    """Time calls from Python."""
    vocab, flooded = (mk.ActiveVocab(VOCAB_SIZE, CAPACITY) for _ in range(2))
    vocab.update(torch.randint(VOCAB_SIZE, (2 * CAPACITY,)))
    active = vocab.ids[0, torch.randperm(CAPACITY)[:TOKENS]].long()
    # Always new: every call lets 300 tokens in and 300 out, the most that a step can ask for.
    fresh = iter(torch.randint(VOCAB_SIZE, (10**4, TOKENS)))
    arms: dict[str, Callable[[], object]] = {
        f"vocab_update_, {TOKENS} tokens, all new": lambda: vocab.update(next(fresh)),
        f"vocab_update_, {TOKENS} tokens, all active": lambda: vocab.update(active),
    }
    # The walk stops early, so only the check of the ids grows: the cost of an aminmax. These arms
    # run apart from the others, whose memory they would push out of the caches.
    long: dict[str, Callable[[], object]] = {}
    for count in LONG:
        tokens = torch.randint(VOCAB_SIZE, (count,))
        long[f"vocab_update_, {count:.0e} tokens"] = partial(flooded.update, tokens)
        long[f"torch.aminmax of {count:.0e} tokens"] = partial(torch.aminmax, tokens)
        check_update(flooded, tokens)
    check_update(vocab, next(fresh))
    check_update(vocab, active)
    arms |= observing(next(fresh))
    rounds = QUICK_SHORT_ROUNDS if quick else SHORT_ROUNDS
    times = time_arms(arms, rounds) | time_arms(long, rounds)
    shape = {"V": VOCAB_SIZE, "K": CAPACITY}
    rows = [{**shape, "arm": name, **time.in_us()} for name, time in times.items()]
    shape["V"] = LARGEST_VOCAB
    times = time_arms(refills(), rounds)
    return rows + [{**shape, "arm": name, **time.in_us()} for name, time in times.items()]


def observing(tokens: Tensor) -> dict[str, Callable[[], object]]:
    """Return a step's calls through torch.ops: alone, with verdicts, with counts in eight lists."""
    ops = torch.ops.microspec
    vocab, lists = mk.ActiveVocab(VOCAB_SIZE, CAPACITY), LearnedLists(VOCAB_SIZE)
    lists.begin(0, tokens)
    state = vocab.ids, vocab.slot_stamps, vocab.token_slots, vocab.clock
    candidates, written = tokens[:-WRITTEN].clone(), tokens[-WRITTEN:].clone()[None]
    whole = partial(ops.vocab_observe_, *state, tokens)
    step = partial(ops.vocab_observe_, *state, written, candidates=candidates)
    # As EngineHead calls it, with learning and without.
    counting = {"tally": lists.tally.data, "num_lists": lists.num_lists}
    verdicts = {"tally": mk.Tally(VOCAB_SIZE).data, "num_lists": 0}
    count = partial(lists.count, written)
    return {
        f"torch.ops: update of {TOKENS} active tokens": partial(ops.vocab_update_, *state, tokens),
        f"torch.ops: observe {TOKENS} written tokens, nothing counted": whole,
        "torch.ops: observe, nothing counted": step,
        "torch.ops: observe, verdicts": partial(step, **verdicts),
        "torch.ops: observe, verdicts and counts": partial(step, **counting),
        f"torch.ops: count of {WRITTEN} tokens": count,
    }


def refills() -> dict[str, Callable[[], object]]:
    """Return refills of a group whose list has counted many texts, few or none."""
    arms: dict[str, Callable[[], object]] = {}
    for texts in (0, 3, 30, TEXTS):
        lists = LearnedLists(LARGEST_VOCAB)
        for text in range(texts):  # Zipfian, and half of the tokens never occur
            tokens = (torch.rand(TEXT_TOKENS) ** 3 * LARGEST_VOCAB / 2).long()
            lists.begin(0, tokens[:50])
            lists.request_lists.fill_(0 if texts == TEXTS else text % lists.num_lists)
            lists.count(tokens)
        vocab = mk.ActiveVocab(LARGEST_VOCAB, CAPACITY)
        lists.request_lists.zero_()
        arms[f"fill a group, {texts} texts counted"] = partial(lists.fill, vocab, 0)
    return arms


def check_update(vocab: mk.ActiveVocab, tokens: Tensor) -> None:
    """Compare an update with the reference's."""
    state = [tensor.clone() for tensor in vocab.state_dict().values()]
    reference.vocab_update_(*state, tokens)
    vocab.update(tokens)
    check_state(vocab, state)


def check_state(vocab: mk.ActiveVocab, want: list[Tensor]) -> None:
    for got, wanted in zip(vocab.state_dict().values(), want, strict=True):
        assert torch.equal(got.cpu(), wanted), "vocab_update_"


class Update:
    """Updates with other tokens at every call: all of them new to the vocabulary, or all active."""

    CALLS = 64

    def __init__(self, vocab_size: int, capacity: int, new: bool, device: str) -> None:
        self.vocab = mk.ActiveVocab(vocab_size, capacity, device=device)
        self.vocab.update(torch.randperm(vocab_size, device=device)[: 2 * capacity])
        if new:  # one round has more of them than the vocabulary has room for
            self.sets = id_sets(vocab_size, TOKENS, self.CALLS, device)
        else:
            slots = id_sets(capacity, TOKENS, self.CALLS, device)
            self.sets = [self.vocab.ids[0, chosen.long()] for chosen in slots]
        self.turn = itertools.cycle(self.sets)

    def __call__(self) -> None:
        self.vocab.update(next(self.turn))

    def check(self, replay: Replay) -> None:
        """Compare a replay with the CPU's op, which the tests compare with an LRU."""
        state = [tensor.cpu() for tensor in self.vocab.state_dict().values()]
        for tokens in self.sets:
            mk.vocab_update_(*state, tokens.cpu())
        self.turn = itertools.cycle(self.sets)  # a graph, too, begins with the first set
        replay.run()
        check_state(self.vocab, state)


def on_gpu(
    quick: bool = False, rounds: int = ROUNDS, only: str = "", device: str = "cuda"
) -> list[dict[str, Any]]:
    """Time replays of graphs."""
    vocab_size = models.SMALL.vocab_size if quick else VOCAB_SIZE
    replays: dict[str, Replay] = {}
    for kind in ("new", "active"):
        name = f"vocab_update_ of {TOKENS} tokens, all {kind}"
        if only in name:
            update = Update(vocab_size, CAPACITY, kind == "new", device)
            replays[name] = capture(update, update.CALLS)
            update.check(replays[name])
    # Stamps, ids and the tokens' slots, each read or written once. The floor is far below the time:
    # an update is a chain of latencies.
    least = CAPACITY * 12 + TOKENS * 24
    bandwidth = CopyBandwidth(device)
    times = time_replays({**replays, bandwidth.NAME: bandwidth.replay()}, rounds)
    shape = {"V": vocab_size, "K": CAPACITY}
    return [row(shape, "cold", name, times, least, bandwidth) for name in replays]


if __name__ == "__main__":
    options.run(__doc__, "vocab", on_cpu, on_gpu)
