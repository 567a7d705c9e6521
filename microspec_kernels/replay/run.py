"""Traces through a policy: what was covered, at which size and at which churn."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..policy import Policy, TargetPass
from ..vocab import ActiveVocab
from .trace import Trace

FIRST = 64  # generated tokens of a sequence that count for coverage_first64
RUN = 5  # tokens that a draft needs in a row, about as many as a tree is deep


@dataclass(frozen=True)
class Replay:
    """What a policy did on a trace. Shares are of the generated tokens, 0 where there are none.

    Attributes:
        keep: whether a sequence began with what the one before it had left.
        steps, tokens: how many were judged.
        coverage: the share that was active when its step began.
        coverage_first64: the same over the first 64 generated tokens of every sequence.
        coverage_rest: the same over those after them.
        coverage_runs5: the share of windows of 5 generated tokens in a row that were all active.
        coverage_p10: a tenth of the sequences had at most this coverage.
        mean_active, max_active: size of the vocabulary as steps began.
        rows_gathered_per_step: slots whose token changed since the step before, or since the
            vocabulary as it begins: the rows that a slab would copy.
    """

    trace: str
    policy: str
    capacity: int
    step: int
    keep: bool
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
        return asdict(self)


def passes(tokens: Tensor, written: Tensor, step: int) -> Iterator[TargetPass]:
    """One sequence as passes of a target: each run of given tokens is one, and each step.

    There is no draft tree in a recording: a step's own tokens stand for it. Nor is there what the
    target thought of them: `top_tokens` is int64 [n, 0].
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
            given = tokens[begin:end]
            yield TargetPass("prompt", given, top_tokens[: len(given)], torch.full_like(given, -1))


@torch.inference_mode()
def replay(
    trace: Trace,
    policy: Policy,
    *,
    vocab_size: int,
    capacity: int = 3072,
    step: int = 4,
    keep: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Replay:
    """Run every sequence of a trace through an active vocabulary.

    Args:
        vocab_size: V; every token of the trace is below it.
        capacity: K, pinned tokens included.
        step: generated tokens a speculative step.
        keep: begin each sequence with what the one before it has left, as requests that share a
            group do; otherwise all begin anew.
        progress: wraps the iterator over sequences, for a progress bar.

    Raises:
        ValueError: no steps are possible with these numbers.
    """
    if step < 1:
        raise ValueError(f"replay: step: expected at least 1, got {step}")
    vocab = ActiveVocab(vocab_size, capacity, pinned=policy.pinned, initial=policy.initial)
    slab, sequences = vocab.ids.clone(), []
    for tokens, written in progress(list(trace.sequences())):
        policy.reset()
        if not keep:
            vocab.reset()
            slab.copy_(vocab.ids)
        sequences.append(_sequence(vocab, slab, policy, passes(tokens, written, step)))
    known = [sequence.known for sequence in sequences]
    sizes = [size for sequence in sequences for size in sequence.sizes]
    steps = max(1, len(sizes))
    return Replay(
        trace=trace.name,
        policy=policy.name,
        capacity=capacity,
        step=step,
        keep=keep,
        steps=len(sizes),
        tokens=sum(map(len, known)),
        coverage=_share(known),
        coverage_first64=_share([judged[:FIRST] for judged in known]),
        coverage_rest=_share([judged[FIRST:] for judged in known]),
        coverage_runs5=_share([sequence.runs() for sequence in sequences]),
        coverage_p10=_tenth_percentile([_share([judged]) for judged in known if len(judged)]),
        mean_active=sum(sizes) / steps,
        max_active=max(sizes, default=0),
        rows_gathered_per_step=sum(sequence.gathered for sequence in sequences) / steps,
    )


@dataclass(frozen=True, eq=False)
class _Sequence:
    """known: bool [g], of each generated token; turn: int64 [g], which run of them it is in."""

    known: Tensor
    turn: Tensor
    sizes: list[int]
    gathered: int

    def runs(self) -> Tensor:
        """Of each window of RUN tokens within a turn, whether all are known: bool [w]."""
        if len(self.known) < RUN:
            return self.known[:0]
        within = self.turn[RUN - 1 :] == self.turn[: 1 - RUN]
        return self.known.unfold(0, RUN, 1).all(1)[within]


def _sequence(
    vocab: ActiveVocab, slab: Tensor, policy: Policy, target_passes: Iterable[TargetPass]
) -> _Sequence:
    """`slab` int32 [1, K]: the ids whose rows have been gathered; brought up to date."""
    size, turn, gathered = int(vocab.size), 0, 0
    known: list[Tensor] = [torch.empty(0, dtype=torch.bool)]
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
            known.append(vocab.contains(target_pass.chosen))
            turns += [turn] * len(target_pass.chosen)
        else:
            turn += 1
        vocab.update(policy.select(target_pass))
    return _Sequence(torch.cat(known), torch.tensor(turns), sizes, gathered)


def _share(judged: list[Tensor]) -> float:
    flat = torch.cat(judged) if judged else torch.empty(0)
    return float(flat.double().mean()) if len(flat) else 0.0


def _tenth_percentile(shares: list[float]) -> float:
    return float(torch.tensor(shares, dtype=torch.float64).quantile(0.1)) if shares else 0.0
