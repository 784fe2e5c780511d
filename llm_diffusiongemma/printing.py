"""How commands lay out what they print for people: sentences that fill lines, cells in columns."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence

LONGEST_LINE = 100
INDENT = "  "


def filled(text: str) -> str:
    """A sentence over as many lines as this terminal's width takes."""
    width = min(shutil.get_terminal_size().columns, LONGEST_LINE)
    return textwrap.fill(
        text,
        width,
        initial_indent=INDENT,
        subsequent_indent=2 * INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of as many cells each, every column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield INDENT + "  ".join(cells).rstrip()
