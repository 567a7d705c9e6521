# SPDX-License-Identifier: Apache-2.0
"""Replay traces through a policy, and measure coverage, vocabulary size and changed rows."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..policy import CAPACITY, Policy, TargetPass
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
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Replay:
    """Run every sequence of a trace through an active vocabulary.

    Args:
        trace: the recorded sequences.
        policy: the policy to measure.
        vocab_size: V; every token of the trace must be below it.
        capacity: K, pinned tokens included.
        step: number of generated tokens per speculative step.
        keep: begin each sequence with the vocabulary that the sequence before it left, like
            requests that share a group. Otherwise reset the vocabulary for each sequence.
        progress: wraps the iterable of sequences, for a progress bar.

    Raises:
        ValueError: step below 1; errors of :class:`~.ActiveVocab`.
    """
    if step < 1:
        raise ValueError(f"replay: step: expected at least 1, got {step}")
    vocab = ActiveVocab(
        vocab_size, capacity, pinned=policy.pinned, frequent_tokens=policy.frequent_tokens
    )
    slab, sequences = vocab.ids.clone(), []
    for tokens, written in progress(list(trace.sequences())):
        if not keep:
            vocab.reset()
            slab.copy_(vocab.ids)
        sequences.append(_sequence(vocab, slab, policy, passes(tokens, written, step)))
    active = [sequence.active for sequence in sequences]
    sizes = [size for sequence in sequences for size in sequence.sizes]
    steps = max(1, len(sizes))
    return Replay(
        trace=trace.name,
        policy=policy.name,
        capacity=capacity,
        step=step,
        keep=keep,
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


def _sequence(
    vocab: ActiveVocab, slab: Tensor, policy: Policy, target_passes: Iterable[TargetPass]
) -> _Sequence:
    """Measure one sequence and update `vocab`.

    Args:
        slab: int32 [1, K], the ids whose rows a slab holds; updated in place.
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
        else:
            turn += 1
        vocab.update(policy.select(target_pass))
    return _Sequence(torch.cat(active), torch.tensor(turns), sizes, gathered)


def _share(judged: list[Tensor]) -> float:
    flat = torch.cat(judged) if judged else torch.empty(0)
    return float(flat.double().mean()) if len(flat) else 0.0


def _tenth_percentile(shares: list[float]) -> float:
    return float(torch.tensor(shares, dtype=torch.float64).quantile(0.1)) if shares else 0.0
