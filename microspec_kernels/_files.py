# SPDX-License-Identifier: Apache-2.0
"""Read external files; an error names the file."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """Turn any exception of a parser into a ValueError with a one-line message.

    Parsers raise many types of exceptions, so every Exception counts as a fault of the file. Put
    only the parser's call into the body, and none of this package's code.

    Args:
        path: the path that the error names.
        expected: description of a valid file, such as "a tokenizer.json".

    Raises:
        OSError: the system could not open or read the file.
        ImportError: a package is missing.
        ValueError: the contents are not `expected`.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{path}: {first_line(error)}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        got = f"an unreadable file ({first_line(error)})"
        raise ValueError(f"{path}: expected {expected}, got {got}") from error


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        OSError: the file does not exist or is not readable.
        ValueError: not UTF-8.
    """
    with reading(path, "UTF-8 text"):
        return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: the file does not exist or is not readable.
        ValueError: the contents are not a JSON object.
    """
    with reading(path, "a JSON object"):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_pt(path: Path, expected: str) -> Any:
    """Load a file that `torch.save` wrote onto the CPU, without running code from the file.

    Raises:
        OSError: the file does not exist or is not readable.
        ValueError: another kind of file. The message says that `expected` was expected.
    """
    with reading(path, expected), path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about pickles that it did not write
        return torch.load(file, map_location="cpu", weights_only=True)


def first_line(error: Exception) -> str:
    """Summarise an error in one line of at most 200 characters."""
    return (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
