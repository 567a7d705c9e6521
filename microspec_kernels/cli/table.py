# SPDX-License-Identifier: Apache-2.0
"""Format figures as a table."""

from collections.abc import Mapping, Sequence


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Format rows with equal keys under a heading; align text left and numbers right."""
    heading = list(rows[0])
    cells = [heading, *([_text(row[key]) for key in heading] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = [isinstance(rows[0][key], str) for key in heading]
    lines = [
        "  ".join(
            cell.ljust(width) if is_text else cell.rjust(width)
            for cell, width, is_text in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join(lines)


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)
