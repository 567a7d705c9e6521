"""Recorded token traces through a vocabulary policy: would a draft have known the next tokens?

A step is what a speculative loop does between two passes of the target: the draft proposes, the
target accepts or corrects ``step`` tokens, and all of them enter the vocabulary at once. So every
token of a step is judged against the vocabulary as it was when that step began. Given tokens (a
prompt, a later turn) are not judged; they enter when they come, before the next step begins.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .vocab import ActiveVocab

FIRST = 64  # generated tokens of a sequence that count for coverage_first64


@dataclass(frozen=True)
class Event:
    """Tokens that enter the vocabulary together: a step's, or given ones that need no draft."""

    tokens: Tensor
    generated: bool


@dataclass(frozen=True)
class Policy:
    """What enters an active vocabulary.

    sources: name → the event's tokens that this source lets in, a subset in their order.
    pinned: tokens that are never evicted, most frequent first; may be none.
    """

    sources: Mapping[str, Callable[[Event], Tensor]]
    pinned: Sequence[int] = ()

    @property
    def name(self) -> str:
        floor = [f"floor{len(self.pinned)}"] if self.pinned else []
        return "+".join([*self.sources, *floor])


def prompt(event: Event) -> Tensor:
    """What was given, a user's later turns included."""
    return event.tokens[:0] if event.generated else event.tokens


def generated(event: Event) -> Tensor:
    """What the model wrote."""
    return event.tokens if event.generated else event.tokens[:0]


TEXT_SOURCES: Mapping[str, Callable[[Event], Tensor]] = {"prompt": prompt, "generated": generated}


@dataclass(frozen=True)
class Trace:
    """tokens: int64 [N]; generated: bool [N]; offsets: where sequences begin, and the end."""

    name: str
    tokens: Tensor
    generated: Tensor
    offsets: list[int]

    def sequences(self) -> Iterator[tuple[Tensor, Tensor]]:
        for begin, end in pairwise(self.offsets):
            yield self.tokens[begin:end], self.generated[begin:end]


@dataclass(frozen=True)
class Replay:
    """What a policy did on a trace.

    tokens: generated tokens judged.
    coverage: the share of them that was active when its step began.
    coverage_first64: the same over the first 64 generated tokens of every sequence.
    mean_active, max_active: size of the vocabulary as steps began.
    rows_gathered_per_step: slots whose token changed since the step before, or since the empty
        vocabulary (pinned tokens present): the rows a slab would copy.
    """

    trace: str
    policy: str
    capacity: int
    step: int
    steps: int
    tokens: int
    coverage: float
    coverage_first64: float
    mean_active: float
    max_active: int
    rows_gathered_per_step: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_trace(path: Path) -> Trace:
    """Read ``tokens``, ``generated`` and ``offsets`` of an .npz file.

    Raises:
        OSError: no such file, or not readable.
        ValueError: not such a trace.
    """
    import numpy as np

    try:
        with np.load(path) as arrays:
            tokens, written, offsets = (arrays[n] for n in ("tokens", "generated", "offsets"))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not an .npz of tokens, generated and offsets") from error
    ordered = len(offsets) > 0 and offsets[0] == 0 and bool((np.diff(offsets) >= 0).all())
    if tokens.shape != written.shape or not ordered or offsets[-1] != len(tokens):
        raise ValueError(f"{path}: tokens, generated and offsets do not fit together")
    flags = torch.from_numpy(written.astype(bool))
    return Trace(path.stem, torch.from_numpy(tokens.astype("int64")), flags, offsets.tolist())


def events(tokens: Tensor, written: Tensor, step: int) -> Iterator[Event]:
    """One sequence as runs of given tokens, and runs of generated ones cut into steps."""
    ends = (torch.nonzero(written[1:] != written[:-1]).flatten() + 1).tolist()
    for begin, end in zip([0, *ends], [*ends, len(tokens)], strict=True):
        if begin == end:
            continue
        is_generated = bool(written[begin])
        pieces = tokens[begin:end].split(step if is_generated else end - begin)
        yield from (Event(piece, is_generated) for piece in pieces)


@torch.inference_mode()
def replay(
    trace: Trace,
    policy: Policy,
    *,
    vocab_size: int,
    capacity: int = 3072,
    step: int = 4,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Replay:
    """Run every sequence of a trace through a fresh active vocabulary.

    Args:
        vocab_size: V; every token of the trace is below it.
        capacity: K, pinned tokens included.
        step: generated tokens a speculative step.
        progress: wraps the iterator over sequences, for a progress bar.

    Raises:
        ValueError: no steps are possible with these numbers.
    """
    if step < 1:
        raise ValueError(f"replay: step: expected at least 1, got {step}")
    vocab = ActiveVocab(vocab_size, capacity, pinned=list(policy.pinned))
    hits: list[Tensor] = []
    early: list[Tensor] = []
    sizes: list[int] = []
    gathered = 0
    for tokens, written in progress(list(trace.sequences())):
        vocab.reset()
        slab, size = vocab.ids.clone(), len(policy.pinned)
        seen = 0
        for event in events(tokens, written, step):
            if event.generated:
                changed = int((slab != vocab.ids).sum())
                if changed:
                    gathered += changed
                    size = int(vocab.size)
                    slab.copy_(vocab.ids)
                sizes.append(size)
                known = vocab.contains(event.tokens)
                hits.append(known)
                early.append(known[: max(0, FIRST - seen)])
                seen += len(known)
            entering = [source(event) for source in policy.sources.values()]
            vocab.update(torch.cat(entering))
    return Replay(
        trace=trace.name,
        policy=policy.name,
        capacity=capacity,
        step=step,
        steps=len(sizes),
        tokens=sum(map(len, hits)),
        coverage=_share(hits),
        coverage_first64=_share(early),
        mean_active=sum(sizes) / max(1, len(sizes)),
        max_active=max(sizes, default=0),
        rows_gathered_per_step=gathered / max(1, len(sizes)),
    )


def _share(pieces: list[Tensor]) -> float:
    return float(torch.cat(pieces).double().mean()) if pieces else 0.0
