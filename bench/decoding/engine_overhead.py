# SPDX-License-Identifier: Apache-2.0
"""What does a step of an engine pay for observing tokens, beside the LM head that it saves?

    python -m bench.decoding.engine_overhead [--quick] [--device cpu|cuda] [--out DIR]

A step has B requests with five drafted tokens each. Observing is eager. It takes the target's
likeliest token (by `argmax` or by `max`) or its three likeliest from the logits [6 B, V], and gives
them and the written tokens to an `EngineHead` that learns; for each request NEW of them are not
active. The step calls the head five times with B rows of hidden, on a GPU in a graph. Logits and
activations are the same in every call. Writes engine.csv.

On a GPU, arms `step, …` are a step of a packed head from the observed tokens to the first drafted
one, the draft's layer included, in a graph: with the gather beside the layer, in front of it, and
without. What the gather hides is the share of (in front − without) that (in front − beside) is.
engine_timeline.csv has when each part of such a step ran, and on which stream.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import models, options, report
from bench.harness.cuda_graphs import capture, time_replays, uncaptured
from bench.harness.draft_layer import products
from bench.harness.inputs import make_weight
from bench.harness.sizes import CAPACITY, QUICK_CAPACITY, QUICK_ROUNDS, ROUNDS
from microspec_kernels.engine import EngineHead, Settings
from microspec_kernels.timing import Percentiles, time_arms

from . import engine_gather
from .engine_gather import GatherStep

REQUESTS = (1, 8, 32)
DRAFTS = 5
# Rows gathered per step and request, as bench.decoding.batches found for a filled vocabulary.
NEW = 2
SETS = 72  # of a step's tokens, used in turn: as many as calls on a CPU
CALLS = 8  # of a replay, on a GPU


@dataclass(frozen=True)
class StepCall:
    """Something that a step calls, and how often."""

    call: Callable[[], Any]
    times_a_step: int = 1
    captured: bool = False


def make_head(weight: Tensor, requests: int, capacity: int, **settings: Any) -> EngineHead:
    """Make a head with full vocabularies of random tokens, for all requests or one each."""
    chosen = Settings(capacity=capacity, **settings)
    num_groups = requests if chosen.vocabulary == "request" else 1
    head = EngineHead(weight, chosen, num_groups=num_groups, num_requests=requests)
    empty = torch.empty(0, dtype=torch.int64)
    head.begin(range(requests), [empty] * requests)
    for group in range(num_groups):
        tokens = torch.randperm(len(weight), device=weight.device)[:capacity]
        head.admit(tokens, None if num_groups == 1 else torch.full_like(tokens, group))
    return head


class Observing:
    """Calls `observe` with the tokens of another step each time.

    A step's tokens are the target's `best` likeliest at each of its rows, and those that it took.
    """

    def __init__(self, head: EngineHead, requests: int, best: int) -> None:
        rows, device = requests * (DRAFTS + 1), head.vocab.device
        vocab_size, num_groups = head.vocab.vocab_size, head.vocab.num_groups
        of_row = torch.arange(requests, device=device).repeat_interleave(DRAFTS + 1)
        self.head, self.rows = head, rows
        self.token_requests = of_row.repeat(best + 1)
        which = self.token_requests % num_groups
        self.sets = []
        for _ in range(SETS):
            slots = torch.randint(head.capacity, (len(which),), device=device)
            tokens = head.vocab.ids[which, slots].long()
            new = torch.randperm(len(tokens), device=device)[: NEW * requests]
            tokens[new] = torch.randint(vocab_size, (len(new),), device=device)
            self.sets.append(tokens)
        self.turn = itertools.cycle(self.sets)

    def __call__(self) -> None:
        tokens = next(self.turn)
        self.head.observe(
            tokens[-self.rows :], self.token_requests, candidates=tokens[: -self.rows]
        )

    def rows_entered(self) -> float:
        """Return the number of rows that become active per call, as the mean of SETS more calls."""
        entered = 0
        for _ in range(SETS):
            before = self.head.vocab.ids.clone()
            self()
            entered += int((self.head.vocab.ids != before).sum())
        return entered / SETS


def check(head: EngineHead, logits: Tensor, hidden: Tensor, row_groups: Tensor | None) -> None:
    """Check that the head's tokens are the best active ones by dense logits, up to rounding.

    Args:
        logits: [M, V] of the dense head.
    """
    ids = head.vocab.ids if row_groups is None else head.vocab.ids[row_groups]
    best = logits.gather(1, ids.long().expand(len(hidden), -1)).amax(1)
    chosen = head.argmax(hidden, row_groups)
    assert bool(head.vocab.contains(chosen, token_groups=row_groups).all()), "not an active token"
    got = logits.gather(1, chosen[:, None])[:, 0]
    assert bool(((best - got) <= 1e-3 * best.abs()).all()), "not the best active token"


def arms_of(weight: Tensor, requests: int, capacity: int) -> dict[tuple[str, str], StepCall]:
    """Return the calls of a step by vocabulary and name."""
    rows = requests * (DRAFTS + 1)
    hidden = torch.randn(requests, weight.size(1), device=weight.device).to(weight.dtype)
    exact = F.linear(hidden.float(), weight.float())
    logits = torch.randn(rows, len(weight), device=weight.device).to(weight.dtype)
    arms = {
        ("", "target's argmax"): StepCall(lambda: logits.argmax(-1)),
        ("", "target's max"): StepCall(lambda: logits.max(-1)),
        ("", "target's top 3"): StepCall(lambda: logits.topk(3)),
        ("", "dense LM head, max"): StepCall(
            lambda: F.linear(hidden, weight).max(-1), DRAFTS, captured=True
        ),
    }
    for vocabulary in ("shared", "request") if requests > 1 else ("shared",):
        for mode, best in (("indexed", 1), ("indexed", 3), ("packed", 1)):
            head = make_head(weight, requests, capacity, vocabulary=vocabulary, mode=mode)
            row_groups = (
                torch.arange(requests, device=weight.device) if head.vocab.num_groups > 1 else None
            )
            check(head, exact, hidden, row_groups)
            argmax = partial(head.argmax, hidden, row_groups)
            if best == 1:
                head_name = f"EngineHead.argmax, {mode}"
                arms[vocabulary, head_name] = StepCall(argmax, DRAFTS, captured=True)
            name = f"judge and observe, top {best}, {mode}"
            arms[vocabulary, name] = StepCall(Observing(head, requests, best))
        arms[vocabulary, "figures"] = StepCall(head.stats)
    return arms


def gather_steps(
    model: models.Model, weight: Tensor, requests: int, capacity: int
) -> dict[str, GatherStep]:
    """Return a step of a packed, shared head for each arm of the gather."""
    rows, device = requests * (DRAFTS + 1), str(weight.device)
    layer, steps = products(model, rows, device), {}
    hidden = torch.randn(requests, weight.size(1), device=device).to(weight.dtype)
    for arm in engine_gather.ARMS:
        head = make_head(weight, requests, capacity, mode="packed")
        observe = Observing(head, requests, 1)
        steps[arm] = GatherStep(head, observe, layer, hidden, NEW * requests, arm)
    return steps


def timed(
    arms: dict[tuple[str, str], StepCall], weight: Tensor, rounds: int
) -> dict[Any, Percentiles]:
    """Time the calls. On a CPU an untimed call of the same arm runs before each.

    So no arm finds what another one left in the caches.
    """
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
    capacity = QUICK_CAPACITY if quick else CAPACITY
    weight = make_weight(model.vocab_size, model.dim, device)
    table = []
    for requests in REQUESTS[:2] if quick else REQUESTS:
        arms = arms_of(weight, requests, capacity)
        if weight.is_cuda:
            for name, step in gather_steps(model, weight, requests, capacity).items():
                arms["shared", f"step, {name}"] = StepCall(step, captured=True)
        times = timed(arms, weight, QUICK_ROUNDS if quick else ROUNDS)
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


def timelines(quick: bool) -> options.Rows:
    """Return when the parts of a step run, on a GPU."""
    model = models.TOY if quick else models.MODELS[models.DEFAULT]
    capacity = QUICK_CAPACITY if quick else CAPACITY
    weight, table = make_weight(model.vocab_size, model.dim, "cuda"), []
    for requests in REQUESTS[:2] if quick else REQUESTS:
        steps = gather_steps(model, weight, requests, capacity)
        common = {"model": model.name, "capacity": capacity, "requests": requests}
        table += [{**common, **row} for row in engine_gather.timelines(steps)]
    return table


def main() -> None:
    args = options.parsed(options.parser(__doc__))
    torch.manual_seed(0)
    rows = measure(args.device, args.quick)
    print(f"{report.device()}\n\n{report.table(rows)}")
    options.save(args, "engine.csv", rows)
    if args.device == "cuda":
        options.save(args, "engine_timeline.csv", timelines(args.quick))


if __name__ == "__main__":
    main()
