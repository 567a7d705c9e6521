"""What a step of an engine pays for observing, beside the LM head that it saves.

    python -m bench.engine [--quick] [--device cpu|cuda] [--out DIR]

A step of B requests with five drafted tokens each. Observing is eager: the target's likeliest
token, by `argmax` or by `max`, or its three likeliest over the logits [6 B, V] that it has just
made; then what `EngineHead` does with the step's tokens, of which NEW a request are not active. The
head is called five times a step, in a graph on a GPU, with B rows of hidden. Logits and activations
are the same in every call.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microspec_kernels.engine import EngineHead, Settings
from microspec_kernels.timing import Percentiles, time_arms

from . import models, options
from .cuda_graphs import capture, time_replays, uncaptured
from .head import CAPACITY
from .head_arms import make_weight

REQUESTS = (1, 8, 32)
DRAFTS = 5
NEW = 2  # bench.batches: rows gathered a step of a request, where its vocabulary begins filled
SETS = 72  # of a step's tokens, in turn: as many as calls on a CPU
CALLS = 8  # a replay, on a GPU


@dataclass(frozen=True)
class Arm:
    call: Callable[[], Any]
    times_a_step: int = 1
    captured: bool = False


def made_head(weight: Tensor, requests: int, capacity: int, **settings: Any) -> EngineHead:
    """With full vocabularies of random tokens, one for all requests or one each."""
    chosen = Settings(capacity=capacity, **settings)
    groups = requests if chosen.vocabulary == "request" else 1
    head = EngineHead(weight, chosen, num_groups=groups)
    for group in range(groups):
        tokens = torch.randperm(len(weight), device=weight.device)[:capacity]
        head.observe(tokens, None if groups == 1 else torch.full_like(tokens, group))
    return head


class Observing:
    """`judge` and `observe`, with the tokens of another step each time: those that the target was
    run over, its `best` likeliest after each of them, and those that it took."""

    def __init__(self, head: EngineHead, requests: int, best: int) -> None:
        rows, device = requests * (DRAFTS + 1), head.vocab.device
        vocab_size, groups = head.vocab.vocab_size, head.vocab.groups
        of_row = torch.arange(requests, device=device).repeat_interleave(DRAFTS + 1) % groups
        self.head, self.rows, self.groups = head, rows, None
        which = of_row.repeat(best + 2)
        if groups > 1:
            self.groups = which
        self.sets = []
        for _ in range(SETS):
            slots = torch.randint(head.capacity, (len(which),), device=device)
            tokens = head.vocab.ids[which, slots].long()
            new = torch.randperm(len(tokens), device=device)[: NEW * requests]
            tokens[new] = torch.randint(vocab_size, (len(new),), device=device)
            self.sets.append(tokens)
        self.turn = itertools.cycle(self.sets)
        self.calls, self.entered_before = 0, entered(head)

    def __call__(self) -> None:
        tokens, groups = next(self.turn), self.groups
        taken = None if groups is None else groups[-self.rows :]
        self.head.count_coverage(tokens[-self.rows :], taken)
        self.head.observe(tokens, groups)
        self.calls += 1

    def rows_entered(self) -> float:
        """A call."""
        return (entered(self.head) - self.entered_before) / self.calls


def entered(head: EngineHead) -> int:
    """Rows since the start; waits for the device."""
    head.stats()
    if head.vocab.device.type == "cuda":
        torch.cuda.synchronize()
    stats = head.stats()
    assert stats is not None
    return stats.rows_entered


def check(head: EngineHead, logits: Tensor, hidden: Tensor, groups: Tensor | None) -> None:
    """The head's tokens are the best active ones by the dense logits [M, V], but for rounding."""
    ids = head.vocab.ids if groups is None else head.vocab.ids[groups]
    best = logits.gather(1, ids.long().expand(len(hidden), -1)).amax(1)
    chosen = head.argmax(hidden, groups)
    assert bool(head.vocab.contains(chosen, token_groups=groups).all()), "not an active token"
    got = logits.gather(1, chosen[:, None])[:, 0]
    assert bool(((best - got) <= 1e-3 * best.abs()).all()), "not the best active token"


def arms_of(weight: Tensor, requests: int, capacity: int) -> dict[tuple[str, str], Arm]:
    """By vocabulary and name."""
    rows = requests * (DRAFTS + 1)
    hidden = torch.randn(requests, weight.size(1), device=weight.device).to(weight.dtype)
    exact = F.linear(hidden.float(), weight.float())
    logits = torch.randn(rows, len(weight), device=weight.device).to(weight.dtype)
    made = {
        ("", "target's argmax"): Arm(lambda: logits.argmax(-1)),
        ("", "target's max"): Arm(lambda: logits.max(-1)),
        ("", "target's top 3"): Arm(lambda: logits.topk(3)),
        ("", "dense LM head, max"): Arm(
            lambda: F.linear(hidden, weight).max(-1), DRAFTS, captured=True
        ),
    }
    for vocabulary in ("shared", "request") if requests > 1 else ("shared",):
        for mode, best in (("indexed", 1), ("indexed", 3), ("packed", 1)):
            head = made_head(weight, requests, capacity, vocabulary=vocabulary, mode=mode)
            groups = torch.arange(requests, device=weight.device) if head.vocab.groups > 1 else None
            check(head, exact, hidden, groups)
            argmax = partial(head.argmax, hidden, groups)
            if best == 1:
                head_name = f"EngineHead.argmax, {mode}"
                made[vocabulary, head_name] = Arm(argmax, DRAFTS, captured=True)
            name = f"judge and observe, top {best}, {mode}"
            made[vocabulary, name] = Arm(Observing(head, requests, best))
        made[vocabulary, "figures"] = Arm(head.stats)
    return made


def timed(arms: dict[tuple[str, str], Arm], weight: Tensor, rounds: int) -> dict[Any, Percentiles]:
    """On a CPU after an untimed call of the same: whatever arm ran before leaves no trace."""
    if weight.is_cuda:
        replays = {
            key: (capture if arm.captured else uncaptured)(arm.call, CALLS)
            for key, arm in arms.items()
        }
        return time_replays(replays, rounds)
    calls: dict[Any, Callable[[], Any]] = {key: arm.call for key, arm in arms.items()}
    return time_arms(calls, rounds, before=lambda key: calls[key]())


def measure(device: str, quick: bool) -> options.Rows:
    model = models.TOY if quick else models.MODELS[models.DEFAULT]
    capacity = 300 if quick else CAPACITY
    weight = make_weight(model.vocab_size, model.dim, device)
    table = []
    for requests in REQUESTS[:2] if quick else REQUESTS:
        arms = arms_of(weight, requests, capacity)
        times = timed(arms, weight, 3 if quick else 31)
        for (vocabulary, name), arm in arms.items():
            observes = isinstance(arm.call, Observing)
            table.append(
                {
                    "model": model.name, "V": model.vocab_size, "D": model.dim,
                    "capacity": capacity, "requests": requests, "drafts": DRAFTS,
                    "vocabulary": vocabulary, "arm": name, "times_a_step": arm.times_a_step,
                    "rows_entered": arm.call.rows_entered() if observes else "",
                    **times[vocabulary, name].in_us(),
                }
            )  # fmt: skip
    return table


if __name__ == "__main__":
    options.run(__doc__, "engine", partial(measure, "cpu"), partial(measure, "cuda"))
