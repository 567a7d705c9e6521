# SPDX-License-Identifier: Apache-2.0
"""Replay traces through a policy, and measure coverage, vocabulary size and changed rows."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..policy import CAPACITY, LearnedLists, LearnedVocab, Policy, TargetPass
from ..vocab import ActiveVocab
from .trace import Trace

FIRST = 64  # number of generated tokens of a sequence that count for coverage_first64
RUN = 5  # number of consecutive tokens that a draft needs: about the depth of a tree


@dataclass(frozen=True)
class Replay:
    """Results of a policy on a trace. Shares are of the generated tokens, and 0 if there are none.

    Attributes:
        trace: name of the trace.
        policy: name of the policy.
        capacity: K, pinned tokens included.
        step: number of generated tokens per speculative step.
        keep: whether a sequence began with the vocabulary that the sequence before it left.
        lists: number of learned lists; 0 if nothing was learned.
        shared: number of sequences that ran at a time and shared one vocabulary.
        steps: number of steps.
        tokens: number of judged tokens.
        coverage: share of tokens that were active when their step began.
        coverage_first64: coverage of the first 64 generated tokens of every sequence.
        coverage_rest: coverage of the tokens after those.
        coverage_runs5: share of windows of 5 consecutive generated tokens that were all active.
        coverage_p10: 10th percentile of the sequences' coverage.
        mean_active: mean size of the vocabulary at the beginning of a step.
        max_active: largest such size.
        rows_gathered_per_step: mean number of slots whose token changed since the previous step, or
            since the initial vocabulary: the rows that a slab would copy.
    """

    trace: str
    policy: str
    capacity: int
    step: int
    keep: bool
    lists: int
    shared: int
    steps: int
    tokens: int
    coverage: float
    coverage_first64: float
    coverage_rest: float
    coverage_runs5: float
    coverage_p10: float
    mean_active: float
    max_active: int
    rows_gathered_per_step: float

    def as_dict(self) -> dict[str, Any]:
        """Return every attribute by its name, ready for JSON."""
        return asdict(self)


def passes(tokens: Tensor, written: Tensor, step: int) -> Iterator[TargetPass]:
    """Yield one sequence as passes of a target: one per run of given tokens, and one per step.

    A recording has no draft tree, so the step's own tokens take its place. A recording has no
    logits of the target, so `top_tokens` is int64 [n, 0].

    Args:
        tokens: int64 [n].
        written: bool [n], whether the model generated the token.
        step: number of generated tokens per step.
    """
    top_tokens = tokens[:, None][:, :0]
    ends = (torch.nonzero(written[1:] != written[:-1]).flatten() + 1).tolist()
    for begin, end in zip([0, *ends], [*ends, len(tokens)], strict=True):
        if begin == end:
            continue
        if written[begin]:
            for piece in tokens[begin:end].split(step):
                yield TargetPass("step", piece, top_tokens[: len(piece)], piece)
        else:
            prompt = tokens[begin:end]
            yield TargetPass(
                "prompt", prompt, top_tokens[: len(prompt)], torch.full_like(prompt, -1)
            )


@torch.inference_mode()
def replay(
    trace: Trace,
    policy: Policy,
    *,
    vocab_size: int,
    capacity: int = CAPACITY,
    step: int = 4,
    keep: bool = False,
    lists: int = 0,
    shared: int = 1,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Replay:
    """Run every sequence of a trace through an active vocabulary.

    Args:
        trace: the recorded sequences.
        policy: the policy to measure. Its frequent tokens are the learned lists' prior.
        vocab_size: V; every token of the trace must be below it.
        capacity: K, pinned tokens included.
        step: number of generated tokens per speculative step.
        keep: begin each sequence with the vocabulary that the sequence before it left. Otherwise
            reset the vocabulary for each sequence.
        lists: number of lists that are learned from the sequences so far (:class:`~.LearnedVocab`);
            0 learns nothing.
        shared: number of sequences that run at a time, step by step in turn, and share one
            vocabulary; the next sequence takes the place of one that ends. Above 1, the vocabulary
            is never reset.
        progress: wraps the iterable of sequences, for a progress bar.

    Raises:
        ValueError: step or shared below 1, lists below 0; lists beside keep or pinned tokens;
            errors of :class:`~.ActiveVocab`.
    """
    for name, value, least in (("step", step, 1), ("lists", lists, 0), ("shared", shared, 1)):
        if value < least:
            raise ValueError(f"replay: {name}: expected at least {least}, got {value}")
    if lists and (keep or len(policy.pinned)):
        unused = "keep" if keep else "pinned tokens"
        raise ValueError(f"replay: lists: expected 0 beside {unused}, got {lists}")
    vocab = ActiveVocab(
        vocab_size, capacity, pinned=policy.pinned, frequent_tokens=policy.frequent_tokens
    )
    learned = None
    if lists:
        of_texts = LearnedLists(
            vocab_size, num_lists=lists, num_requests=shared, prior=policy.frequent_tokens
        )
        learned = LearnedVocab(vocab, of_texts)
    slab = vocab.ids.clone()

    def begin(request: int, tokens: Tensor, written: Tensor) -> "_Running":
        if learned is not None:
            prompt = tokens[: int(written.long().argmax())] if written.any() else tokens
            learned.begin(request, prompt)
        elif not keep and shared == 1:
            vocab.reset()
        if shared == 1 and not keep:
            slab.copy_(vocab.ids)
        learn = None if learned is None else (learned, request)
        return _sequence(vocab, slab, policy, passes(tokens, written, step), learn)

    sequences = _in_turn(progress(list(trace.sequences())), shared, begin)
    active = [sequence.active for sequence in sequences]
    sizes = [size for sequence in sequences for size in sequence.sizes]
    steps = max(1, len(sizes))
    return Replay(
        trace=trace.name,
        policy=policy.name,
        capacity=capacity,
        step=step,
        keep=keep,
        lists=lists,
        shared=shared,
        steps=len(sizes),
        tokens=sum(map(len, active)),
        coverage=_share(active),
        coverage_first64=_share([judged[:FIRST] for judged in active]),
        coverage_rest=_share([judged[FIRST:] for judged in active]),
        coverage_runs5=_share([sequence.runs() for sequence in sequences]),
        coverage_p10=_tenth_percentile([_share([judged]) for judged in active if len(judged)]),
        mean_active=sum(sizes) / steps,
        max_active=max(sizes, default=0),
        rows_gathered_per_step=sum(sequence.gathered for sequence in sequences) / steps,
    )


@dataclass(frozen=True, eq=False)
class _Sequence:
    """Measurements of one sequence with g generated tokens.

    Attributes:
        active: bool [g], whether each generated token was active.
        turn: int64 [g], the number of the run of generated tokens that contains the token.
        sizes: size of the vocabulary at the beginning of each step.
        gathered: number of rows that a slab would have copied.
    """

    active: Tensor
    turn: Tensor
    sizes: list[int]
    gathered: int

    def runs(self) -> Tensor:
        """Test for each window of RUN tokens within a turn whether all were active: bool [w]."""
        if len(self.active) < RUN:
            return self.active[:0]
        within = self.turn[RUN - 1 :] == self.turn[: 1 - RUN]
        return self.active.unfold(0, RUN, 1).all(1)[within]


# One sequence under way: it yields after every pass, and returns what was measured.
_Running = Generator[None, None, _Sequence]


def _in_turn(
    sequences: Iterable[tuple[Tensor, Tensor]],
    count: int,
    begin: Callable[[int, Tensor, Tensor], _Running],
) -> list[_Sequence]:
    """Run `count` sequences at a time, one pass each in turn; return them in the order of trace."""
    waiting = enumerate(sequences)
    running: dict[int, tuple[int, _Running]] = {}
    done: dict[int, _Sequence] = {}
    while True:
        for request in range(count):
            if request not in running and (following := next(waiting, None)) is not None:
                number, (tokens, written) = following
                running[request] = number, begin(request, tokens, written)
        if not running:
            return [done[number] for number in sorted(done)]
        for request, (number, sequence) in list(running.items()):
            try:
                next(sequence)
            except StopIteration as end:
                done[number] = end.value
                del running[request]


def _sequence(
    vocab: ActiveVocab,
    slab: Tensor,
    policy: Policy,
    target_passes: Iterable[TargetPass],
    learn: tuple[LearnedVocab, int] | None,
) -> _Running:
    """Measure one sequence and update `vocab`.

    Args:
        slab: int32 [1, K], the ids whose rows a slab holds; updated in place.
        learn: what learns the tokens of each step, and the number of its request.
    """
    size, turn, gathered = int(vocab.size), 0, 0
    active: list[Tensor] = [torch.empty(0, dtype=torch.bool)]
    turns: list[int] = []
    sizes: list[int] = []
    for target_pass in target_passes:
        if target_pass.stage == "step":
            changed = int((slab != vocab.ids).sum())
            if changed:
                gathered += changed
                size = int(vocab.size)
                slab.copy_(vocab.ids)
            sizes.append(size)
            active.append(vocab.contains(target_pass.chosen))
            turns += [turn] * len(target_pass.chosen)
            if learn is not None:
                learned, request = learn
                chosen = target_pass.chosen
                learned.lists.count(chosen, token_requests=torch.full_like(chosen, request))
        else:
            turn += 1
        selected = policy.select(target_pass)
        if learn is not None and target_pass.stage == "prompt":
            selected = learn[0].of_prompt(selected)
        vocab.update(selected)
        yield
    return _Sequence(torch.cat(active), torch.tensor(turns), sizes, gathered)


def _share(judged: list[Tensor]) -> float:
    flat = torch.cat(judged) if judged else torch.empty(0)
    return float(flat.double().mean()) if len(flat) else 0.0


def _tenth_percentile(shares: list[float]) -> float:
    return float(torch.tensor(shares, dtype=torch.float64).quantile(0.1)) if shares else 0.0
