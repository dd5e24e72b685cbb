"""Plain text tables for terminals and pipes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from genworker.core.visible import visible


def width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Align cells into lines.

    Args:
        right: numbers of the columns that are aligned to the right.
    """
    cells = [[visible(cell, one_line=True) for cell in row] for row in (header, *rows)]
    widths = [max(width(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        parts = []
        for column, cell in enumerate(row):
            padding = " " * (widths[column] - width(cell))
            parts.append(padding + cell if column in right else cell + padding)
        lines.append("  ".join(parts).rstrip())
    return lines


def shorten(text: str, limit: int) -> str:
    """The text in at most `limit` columns, cut in the middle: ids differ at their ends."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"
