# SPDX-License-Identifier: Apache-2.0
"""Read integers from .npy files."""

from pathlib import Path
from typing import Any

from ._files import reading
from ._optional import require


def integers(path: Path, dimensions: int) -> Any:
    """Read a numpy array of integers with `dimensions` dimensions from an .npy file.

    Raises:
        OSError: the file does not exist or is not readable.
        ValueError: another kind of file, a damaged file, or other contents.
        ImportError: the `replay` extra is missing.
    """
    np = require("numpy", "replay")
    expected = f"an .npy of integers in {dimensions} dimension(s)"
    with reading(path, expected):
        # mmap never unpickles, and limits the read to the file's length if a header claims more.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: expected {expected}, got an .npz")
    if array.ndim != dimensions or array.dtype.kind not in "iu":
        raise ValueError(f"{path}: expected {expected}, got {array.dtype} {list(array.shape)}")
    return np.array(array)
