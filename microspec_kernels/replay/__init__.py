# SPDX-License-Identifier: Apache-2.0
"""Replay recorded token traces through a vocabulary policy: could a draft have proposed the tokens?

A step is the work of a speculative loop between two passes of the target: the draft proposes, the
target accepts or corrects ``step`` tokens, and all of them enter the vocabulary at once. Every
token of a step is therefore judged against the vocabulary at the beginning of the step. Given
tokens (a prompt, a later turn) are not judged. They enter before the next step begins.

    from pathlib import Path

    from microspec_kernels.policy import TEXT, Policy
    from microspec_kernels.replay import load_trace, replay

    trace = load_trace(Path("chat.npz"))
    result = replay(trace, Policy(TEXT), vocab_size=128256, lists=8)
    result.coverage, result.mean_active
"""

from .from_text import load_text, load_tokenizer
from .plot import plot
from .run import Replay, passes, replay
from .trace import Trace, evenly, joined, load_trace, mixed

__all__ = [
    "Replay",
    "Trace",
    "evenly",
    "joined",
    "load_text",
    "load_tokenizer",
    "load_trace",
    "mixed",
    "passes",
    "plot",
    "replay",
]
