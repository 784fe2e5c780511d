"""How commands lay out what they print for people: sentences that fill lines, cells in columns; and what several
of them say in the same words."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from .wording import quoted

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


def kernels_told(kernels: Any) -> str | None:
    """What a report or a server's state says of them, which may be of another version; None if nothing."""
    if not isinstance(kernels, dict):
        return None
    in_use, switched_off = kernels.get("in_use"), kernels.get("switched_off")
    told = f"{len(in_use)} in use" if isinstance(in_use, list) and in_use else "none in use"
    reasons = switched_off.items() if isinstance(switched_off, dict) else ()
    # Of "all" there is but the reason.
    off = [
        quoted(why) if name == "all" else f"not {quoted(name).replace('_', ' ')}: {quoted(why)}"
        for name, why in reasons
    ]
    return "; ".join((told, *off))
