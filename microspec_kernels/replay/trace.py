"""Recorded tokens: which were given, and which a model wrote."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from .._extras import require


@dataclass(frozen=True, eq=False)
class Trace:
    """tokens: int64 [N]; generated: bool [N]; offsets: where sequences begin, and the end."""

    name: str
    tokens: Tensor
    generated: Tensor
    offsets: Sequence[int]

    def sequences(self) -> Iterator[tuple[Tensor, Tensor]]:
        for begin, end in pairwise(self.offsets):
            yield self.tokens[begin:end], self.generated[begin:end]


def load_trace(path: Path) -> Trace:
    """Read ``tokens``, ``generated`` and ``offsets`` of an .npz file.

    Raises:
        OSError: no such file, or not readable.
        ValueError: not such a trace.
        ImportError: the `replay` extra is missing.
    """
    np = require("numpy", "replay")
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
