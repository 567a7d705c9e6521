# SPDX-License-Identifier: Apache-2.0
"""Read recorded traces, and texts on which lists may be counted.

Every trace is split once. Policies are judged on sequences of one half. Lists of its requests are
counted on the other half. "Others" shares no task, no suite of tasks and no model with the judged
trace. A trace's name reads suite-task__model.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.harness.corpus import rows as read_corpus
from microspec_kernels.replay import Trace, evenly, joined

JUDGED = 84  # most sequences of a trace, evenly from its half; as many texts of others
# The name of a suite in a trace, and its names in the corpus.
SUITES = {"lcb": {"livecodebench"}, "mmlu": {"mmlu-pro"}, "zero": {"zeroeval", "gsm8k-train"}}


@dataclass(frozen=True, eq=False)
class Halves:
    """The halves of a trace.

    Attributes:
        judged: the trace to replay.
        counted: the texts, int64, that the model wrote in the other half.
    """

    judged: Trace
    counted: list[Tensor]


def halves(trace: Trace) -> Halves:
    """Split a trace, so that every other sequence is judged.

    Raises:
        ValueError: fewer than two sequences.
    """
    sequences = list(trace.sequences())
    if len(sequences) < 2:
        raise ValueError(f"{trace.name}: expected at least 2 sequences, got {len(sequences)}")
    judged = evenly(sequences[::2], JUDGED)
    counted = [tokens[written] for tokens, written in sequences[1::2]]
    return Halves(joined(trace.name, judged), counted)


def others(name: str, traces: dict[str, Halves]) -> list[Tensor]:
    """Return texts of the traces that have nothing in common with this one, as many of each."""
    suite, model = suite_of(name), model_of(name)
    apart = [t for n, t in traces.items() if suite_of(n) != suite and model_of(n) != model]
    return [text for trace in apart for text in evenly(trace.counted, JUDGED)]


def suite_of(name: str) -> str:
    return name.partition("__")[0].partition("-")[0]


def model_of(name: str) -> str:
    return name.partition("__")[2].replace("_", ".")


def load_corpus(path: Path, tokenizer: Any) -> dict[str, list[Tensor]]:
    """Read responses as token ids, by the suite that their source names.

    Args:
        path: an .xz of JSON lines {source, prompt, response, ...}, source "suite/…".
    """
    texts: dict[str, list[Tensor]] = defaultdict(list)
    for row in read_corpus(path, "source", "response"):
        ids = tokenizer.encode(row["response"], add_special_tokens=False).ids
        texts[row["source"].partition("/")[0]].append(torch.tensor(ids))
    return dict(texts)


def unrelated(name: str, corpus: dict[str, list[Tensor]], count: int | None = None) -> list[Tensor]:
    """Return the texts of other suites than the trace's, at most `count` of each."""
    related = SUITES.get(suite_of(name), set())
    kept = [texts for suite, texts in corpus.items() if suite not in related]
    return [text for texts in kept for text in evenly(texts, count or len(texts))]
