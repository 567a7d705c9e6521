"""Read integers from .npy files."""

from pathlib import Path
from typing import Any

from ._files import reading
from ._optional import require


def integers(path: Path, dimensions: int) -> Any:
    """Read the integers of an .npy file: a numpy array of so many dimensions.

    Raises:
        OSError: no such file, or not readable.
        ValueError: another kind of file, a damaged one, or other contents.
    """
    np = require("numpy", "replay")
    expected = f"an .npy of integers in {dimensions} dimension(s)"
    with reading(path, expected):
        # A map is as long as the file, whatever a damaged header says; and it never unpickles.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: expected {expected}, got an .npz")
    if array.ndim != dimensions or array.dtype.kind not in "iu":
        raise ValueError(f"{path}: expected {expected}, got {array.dtype} {list(array.shape)}")
    return np.array(array)
