"""Recorded tokens: which were given, and which a model wrote."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microspec_kernels._optional import require

from .._files import reading

ARRAYS = ("tokens", "generated", "offsets")
_INT64_MAX = 2**63 - 1


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

    Args:
        path: of an .npz of ``tokens``, integers [N] of at least 0; ``generated``, bools or 0 and 1
            [N]; ``offsets``, integers [S + 1] that rise from 0 to N.

    Raises:
        OSError: no such file, or not readable.
        ValueError: not such a trace; says which array is wrong.
        ImportError: the `replay` extra is missing.
    """
    np = require("numpy", "replay")
    with reading(path, f"an .npz of {', '.join(ARRAYS)}"), np.load(path, allow_pickle=False) as npz:
        arrays = {name: npz[name] for name in ARRAYS}
    tokens = _whole(path, "tokens", arrays["tokens"])
    offsets = _whole(path, "offsets", arrays["offsets"])
    flags = _flags(path, arrays["generated"])
    if len(flags) != len(tokens):
        raise _wrong(path, "generated", f"shape [{len(tokens)}] as tokens", f"[{len(flags)}]")
    ends = offsets[[0, -1]].tolist() if len(offsets) else []
    if ends != [0, len(tokens)] or bool((offsets[1:] < offsets[:-1]).any()):
        got = f"{len(offsets)} that do not" + (f", from {ends[0]} to {ends[1]}" if ends else "")
        raise _wrong(path, "offsets", f"entries that rise from 0 to {len(tokens)}", got)
    return Trace(path.stem, torch.from_numpy(tokens), torch.from_numpy(flags), offsets.tolist())


def _whole(path: Path, name: str, array: Any) -> Any:
    """The array as int64 [n], every entry at least 0."""
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise _wrong(path, name, "integers [n]", f"{array.dtype} {list(array.shape)}")
    outside = array[(array < 0) | (array > _INT64_MAX)]
    if len(outside):
        raise _wrong(path, name, "integers of at least 0 that int64 holds", outside[0])
    return array.astype("int64")


def _flags(path: Path, array: Any) -> Any:
    """The array as bool [n]."""
    expected = "bools, or integers 0 and 1, [n]"
    if array.ndim != 1 or array.dtype.kind not in "biu":
        raise _wrong(path, "generated", expected, f"{array.dtype} {list(array.shape)}")
    others = array[(array != 0) & (array != 1)]
    if len(others):
        raise _wrong(path, "generated", expected, others[0])
    return array.astype(bool)


def _wrong(path: Path, name: str, expected: str, got: object) -> ValueError:
    return ValueError(f"{path}: {name}: expected {expected}, got {got}")
