"""Where a terminal's cursor may be after what has been printed: in which columns.

What counts is whether it may stand behind the last one. A terminal that has printed up to its edge wraps before
the next character, and forgets that when its cursor is moved: then the next character overwrites one.
"""

from __future__ import annotations

import os
import re
import unicodedata
from functools import lru_cache

TAB_COLUMNS = 8
MAX_COLUMNS = 64
"""Who may be in more is as good as anywhere, and each further character would take longer to follow."""
ZERO_WIDTH_JOINER = "\u200d"
VIRAMA = 9
"""the combining class of what takes a letter's vowel, and joins it to the next one"""

# All of one column, and what else stands beside them.
_RUNS = re.compile(r"[ -~]+|[^ -~]", re.DOTALL)
# Whose terminals may be set to print Greek, Cyrillic and much else as wide as their own characters.
_EAST_ASIAN = ("zh", "ja", "ko")


class Cursor:
    """Of a terminal, after what has been printed. Not for several threads at once."""

    def __init__(self) -> None:
        self._width = 0
        self.begin_line()

    def begin_line(self) -> None:
        """It is at the start of a line, whatever came before."""
        self._is_lost = False
        self._line = ""
        """all that was printed since the last line feed"""
        self._columns = frozenset({0})

    def lose(self) -> None:
        """Nobody knows where it is, until a line is begun."""
        self._is_lost = True

    def printed(self, text: str, width: int) -> None:
        """What comes behind all before, in a terminal of so many columns."""
        self._resize(width)
        _, line_feed, line = text.rpartition("\n")
        if line_feed:
            self._line, self._columns = "", frozenset({0})
        self._columns = _after(self._columns, line, width, self._line[-1:])
        self._line += line
        # What the terminal may obey; a line feed is all that is known of it.
        self._is_lost = self._is_lost or any(_is_obeyed(character) for character in text)

    def columns(self, width: int) -> frozenset[int]:
        """Where it may be: from 0; `width` is behind the last one, with a wrap to come. Empty where it can't be
        told, or must not be moved: terminals forget, too, that the next character is joined to the last one."""
        self._resize(width)
        return frozenset() if self._is_lost or _joins_next(self._line[-1:]) else self._columns

    def _resize(self, width: int) -> None:
        """Some terminals break their lines anew, others cut them and move the cursor in."""
        if width == self._width:
            return
        cut = frozenset(min(column, width - 1) for column in self._columns if self._width)
        anew = _after(frozenset({0}), self._line, width) if self._columns else frozenset()
        self._columns = anew | cut if anew else anew
        self._width = width


def _after(columns: frozenset[int], text: str, width: int, before: str = "") -> frozenset[int]:
    """Where a cursor is that was in one of these columns, behind a text without line feeds that follows another
    character, if any. None of them if that can't be told."""
    for run in _RUNS.findall(text):
        if run == "\r":
            columns = frozenset({0})
        elif not columns or len(columns) > MAX_COLUMNS:
            columns = frozenset()
        elif run == "\t":
            columns = frozenset(
                min((column // TAB_COLUMNS + 1) * TAB_COLUMNS, max(width - 1, column)) for column in columns
            )
        else:
            columns = frozenset(
                _forward(column, cells, width) for column in columns for cells in _cells(run[0], before)
            )
            if len(run) > 1:  # each of one column
                columns = frozenset((column + len(run) - 2) % width + 1 for column in columns)
        before = run[-1]
    return columns


def _forward(column: int, cells: int, width: int) -> int:
    """Behind a character of so many columns, which is in the next row if it has no room."""
    return column + cells if column + cells <= width else cells


@lru_cache(maxsize=4096)
def _cells(character: str, before: str) -> tuple[int, ...]:
    """How many columns terminals give it behind another: they differ where one sign has several characters."""
    cells = _own_cells(character)
    return (0, *cells) if cells[0] and _joins_next(before) else cells


def _own_cells(character: str) -> tuple[int, ...]:
    category = unicodedata.category(character)
    # What stands beside letters, what nobody knows yet, an emoji's tone of skin; or an end of a Korean syllable.
    if (category in ("Mc", "Cn", "Co", "Sk") and not character.isascii()) or "\u1160" <= character <= "\u11ff":
        return (0, 1, 2)
    if category[0] in "MC" or category in ("Zl", "Zp"):
        return (0, 1)
    if category == "So":  # emoji
        return (1, 2)
    width = unicodedata.east_asian_width(character)
    if width in "WF":
        return (2,)
    return (1, 2) if width == "A" and _is_east_asian() else (1,)


def _joins_next(character: str) -> bool:
    """Whether there are terminals that make one sign of it and what follows."""
    return character != "" and (
        character == ZERO_WIDTH_JOINER
        or unicodedata.combining(character) == VIRAMA
        or "\U0001f1e6" <= character <= "\U0001f1ff"  # half a flag
    )


def _is_obeyed(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and character not in "\n\r\t"


def _is_east_asian() -> bool:
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or ""
    return locale.startswith(_EAST_ASIAN)
