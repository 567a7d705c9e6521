# SPDX-License-Identifier: Apache-2.0
"""Read the corpus: an .xz of JSON lines with a source, a split, a prompt and a response."""

import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from microspec_kernels._files import reading


def rows(path: Path, *fields: str) -> Iterator[dict[str, Any]]:
    """Yield the lines as objects that have at least the `fields`.

    A field is a text; a prompt may also be null.

    Raises:
        OSError: no such file, or not readable.
        ValueError: not an .xz, damaged, or a line is not such an object; says which.
    """
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        number = 0
        while True:
            number += 1
            with reading(path, "an .xz of JSON lines"):
                line = lines.readline()
            if not line:
                return
            with reading(f"{path}:{number}", "a JSON object"):
                row = json.loads(line)
            if not isinstance(row, dict) or not all(_fits(row, name) for name in fields):
                expected = f"an object with texts as {', '.join(fields)}"
                raise ValueError(f"{path}:{number}: expected {expected}, got {line[:80].strip()}")
            yield row


def _fits(row: dict[str, Any], name: str) -> bool:
    value = row.get(name)
    return isinstance(value, str) or (name == "prompt" and name in row and value is None)


def enough(path: Path, what: str, found: Sequence[Any], count: int) -> None:
    """Refuse a corpus with fewer of `what` than asked for.

    Raises:
        ValueError: says how many there are.
    """
    if len(found) < count:
        raise ValueError(f"{path}: expected {count} {what}, got {len(found)}; set --prompts")
