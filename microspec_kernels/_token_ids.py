# SPDX-License-Identifier: Apache-2.0
"""Check lists of token ids from callers and files. The ops check their own tensors elsewhere."""

import json
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._files import read_pt, reading
from ._npy import integers

if TYPE_CHECKING:
    import numpy as np

INT32_IDS = 2**31
"""Vocabulary size to assume when the real one is unknown: every id of an op is below it."""

_INT64_MAX = 2**63 - 1


def token_ids(
    where: str,
    ids: "Tensor | Iterable[int] | np.ndarray[Any, Any]",
    vocab_size: int,
    *,
    device: torch.device | str = "cpu",
    distinct: bool = True,
) -> Tensor:
    """Check a list of token ids before any narrowing conversion.

    Args:
        where: name of the list in an error, such as "ActiveVocab: pinned".
        ids: [n], of an integer dtype or Python ints; an empty list may have any dtype.
        vocab_size: V; every id must be in [0, V).
        device: device of the result.
        distinct: whether a repeated id is an error.

    Returns:
        int64 [n] on ``device``, in the same order.

    Raises:
        TypeError: ids that are not integers, such as floats or bools.
        ValueError: wrong shape, an id outside [0, V), or a repeated id.
    """
    tokens = _wide(where, ids)
    outside = ((tokens < 0) | (tokens >= vocab_size)).nonzero()
    if len(outside):
        position = int(outside[0])
        expected = f"ids in [0, {vocab_size})"
        raise _wrong(where, expected, f"{int(tokens[position])} at position {position}")
    different, times = tokens.unique(return_counts=True)
    if distinct and len(different) != len(tokens):
        repeated = int(different[times > 1][0])
        raise _wrong(where, "distinct ids", f"{repeated} {int(times[times > 1][0])} times")
    return tokens.to(device)


def read_token_ids(
    path: str | Path, vocab_size: int = INT32_IDS, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Read a list of distinct token ids, such as the most frequent tokens.

    Args:
        path: an .npy of integers [n]; a .pt with such a tensor or a list of ints, like FR-Spec's
            maps (loaded with ``weights_only=True``); or a .json list of ints.
        vocab_size: V; every id must be in [0, V). The default is the limit of int32.
        device: device of the result.

    Returns:
        int64 [n] on ``device``, in the file's order.

    Raises:
        OSError: the file does not exist or is not readable.
        ValueError: another kind of file, a damaged file, or contents that are not such ids. The
            message is one line that names the file.
    """
    path = Path(path)
    try:
        return token_ids(str(path), _read(path), vocab_size, device=device)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _wide(where: str, ids: Any) -> Tensor:
    """Convert ids to int64 [n] on the CPU; raise ValueError for an id that int64 cannot hold."""
    if isinstance(ids, Tensor):
        dtype = str(ids.dtype).removeprefix("torch.")
        _check_array(where, ids.shape, dtype, dtype.startswith(("int", "uint")))
        return ids.detach().to("cpu", torch.int64)
    if hasattr(ids, "__array_interface__"):
        _check_array(where, ids.shape, str(ids.dtype), ids.dtype.kind in "iu")
        if len(ids) and (largest := int(ids.max())) > _INT64_MAX:
            raise _wrong(where, "ids that int64 holds", largest)
        return torch.from_numpy(ids.astype("int64"))
    if not isinstance(ids, Iterable) or isinstance(ids, str | bytes):
        raise _wrong(where, "a list of integer ids", type(ids).__name__, TypeError)
    values = [_integer(where, value) for value in ids]
    if beyond := [value for value in values if abs(value) > _INT64_MAX]:
        raise _wrong(where, "ids that int64 holds", beyond[0])
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def _check_array(where: str, shape: Sequence[int], dtype: str, integer: bool) -> None:
    if len(shape) != 1:
        raise _wrong(where, "shape [n]", list(shape))
    if shape[0] and not integer:
        raise _wrong(where, "integer ids", dtype, TypeError)


def _integer(where: str, value: Any) -> int:
    boolean = isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool
    if boolean or not hasattr(value, "__index__"):
        raise _wrong(where, "integer ids", type(value).__name__, TypeError)
    try:
        return operator.index(value)
    except TypeError:  # an array or a tensor of more than one dimension, or of floats
        raise _wrong(where, "integer ids", type(value).__name__, TypeError) from None


def _read(path: Path) -> Any:
    match path.suffix:
        case ".npy":
            return integers(path, 1)
        case ".pt":
            return _read_pt(path)
        case ".json":
            return _read_json(path)
    raise _wrong(str(path), "an .npy, .pt or .json of token ids", f"{path.suffix or 'no'} suffix")


def _read_pt(path: Path) -> Any:
    loaded = read_pt(path, "a .pt of token ids")
    if not isinstance(loaded, Tensor | list):
        expected = "a .pt of a tensor or a list of token ids"
        raise _wrong(str(path), expected, type(loaded).__name__)
    return loaded


def _read_json(path: Path) -> Any:
    with reading(path, "a .json of token ids"):
        loaded = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, list):
        raise _wrong(str(path), "a .json list of token ids", type(loaded).__name__)
    return loaded


def _wrong(where: str, expected: str, got: object, kind: type[Exception] = ValueError) -> Exception:
    return kind(f"{where}: expected {expected}, got {got}")
