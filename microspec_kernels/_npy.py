"""Reading token ids from .npy files."""

from pathlib import Path
from typing import Any

from ._extras import require


def token_ids(path: Path) -> list[int]:
    """A list of token ids, as of a frequency rank (the most frequent first).

    Raises:
        OSError: no such file, or not readable.
        ValueError: not a list of integers.
    """
    ids: list[int] = integers(path, 1).tolist()
    return ids


def integers(path: Path, dimensions: int) -> Any:
    """The integers of an .npy file, a numpy array of so many dimensions.

    Raises:
        OSError: no such file, or not readable.
        ValueError: something else.
    """
    np = require("numpy", "replay")
    expected = f"{path}: expected an .npy of integers in {dimensions} dimension(s)"
    try:
        array = np.load(path)
    except ValueError as error:
        raise ValueError(expected) from error
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != dimensions
        or array.dtype.kind not in "iu"
    ):
        raise ValueError(expected)
    return array
