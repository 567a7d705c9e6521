"""Read files that others wrote: whatever is wrong with one becomes an error that names it."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """Turn whatever a parser raises over a file's contents into a ValueError of one line.

    Parsers raise whatever they come upon, so every Exception counts as a fault of the file: put the
    parser's call under this, and nothing of our own.

    Args:
        path: what the error names.
        expected: what the file should be, as "a tokenizer.json".

    Raises:
        OSError: the system could not open or read the file.
        ImportError: a package is missing.
        ValueError: the file holds anything but `expected`.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        got = f"an unreadable file ({first_line(error)})"
        raise ValueError(f"{path}: expected {expected}, got {got}") from error


def read_text(path: Path) -> str:
    """Read a text.

    Raises:
        OSError: no such file, or not readable.
        ValueError: not UTF-8.
    """
    with reading(path, "UTF-8 text"):
        return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: no such file, or not readable.
        ValueError: anything but a JSON object.
    """
    with reading(path, "a JSON object"):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_pt(path: Path, expected: str) -> Any:
    """Load what `torch.save` wrote, onto the CPU; no code of the file's runs.

    Raises:
        OSError: no such file, or not readable.
        ValueError: another kind of file.
    """
    with reading(path, expected), path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about pickles that it did not write
        return torch.load(file, map_location="cpu", weights_only=True)


def first_line(error: Exception) -> str:
    """Tell an error in one line of at most 200 characters."""
    return (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
