"""The white space of a document, which stands between its parts only."""

from __future__ import annotations

from .language import EMPTY_TEXT, Language, Literal, concatenate, optional, unite

# Arrays and objects deeper than this stand on one line.
INDENTED_LEVELS = 6

SPACE = optional(Literal(b" "))


def gaps(nesting: int) -> tuple[Language, Language, Language]:
    """The separator, what follows the opening and what precedes the closing bracket of an array or object.

    On one line with or without spaces, or on lines of their own that are indented by two spaces a level.
    """
    if nesting >= INDENTED_LEVELS:
        return concatenate(Literal(b","), SPACE), EMPTY_TEXT, EMPTY_TEXT
    inner, outer = b"\n" + b"  " * (nesting + 1), b"\n" + b"  " * nesting
    comma = concatenate(Literal(b","), unite([SPACE, Literal(inner)]))
    return comma, optional(Literal(inner)), optional(Literal(outer))
