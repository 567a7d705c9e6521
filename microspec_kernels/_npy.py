"""Read integers from .npy files."""

from pathlib import Path
from typing import Any

from ._extras import require


def integers(path: Path, dimensions: int) -> Any:
    """Read the integers of an .npy file: a numpy array of so many dimensions.

    Raises:
        OSError: no such file, or not readable.
        ValueError: another kind of file, a damaged one, or other contents.
    """
    np = require("numpy", "replay")
    expected = f"{path}: expected an .npy of integers in {dimensions} dimension(s)"
    try:
        # A map is as long as the file, whatever a damaged header says; and it never unpickles.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy's parsers raise what they come upon
        raise ValueError(f"{expected}, got an unreadable file ({first_line(error)})") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{expected}, got an .npz")
    if array.ndim != dimensions or array.dtype.kind not in "iu":
        raise ValueError(f"{expected}, got {array.dtype} {list(array.shape)}")
    return np.array(array)


def first_line(error: Exception) -> str:
    """Tell an error in one line."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
