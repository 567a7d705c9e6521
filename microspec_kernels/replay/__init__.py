"""Recorded token traces through a vocabulary policy: would a draft have known the next tokens?

A step is what a speculative loop does between two passes of the target: the draft proposes, the
target accepts or corrects ``step`` tokens, and all of them enter the vocabulary at once. So every
token of a step is judged against the vocabulary as it was when that step began. Given tokens (a
prompt, a later turn) are not judged; they enter when they come, before the next step begins.

    from pathlib import Path

    from microspec_kernels.policy import TEXT, Policy
    from microspec_kernels.replay import load_trace, replay

    trace = load_trace(Path("chat.npz"))
    result = replay(trace, Policy(TEXT, initial=frequency), vocab_size=128256)
    result.coverage, result.mean_active
"""

from .from_text import load_text, load_tokenizer, token_texts
from .plot import plot
from .run import Replay, passes, replay
from .trace import Trace, load_trace

__all__ = [
    "Replay",
    "Trace",
    "load_text",
    "load_tokenizer",
    "load_trace",
    "passes",
    "plot",
    "replay",
    "token_texts",
]
