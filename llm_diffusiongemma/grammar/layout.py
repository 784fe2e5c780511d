"""The white space of a document, which stands between its parts only."""

from __future__ import annotations

from enum import Enum
from typing import Any

from . import scalars
from .language import EMPTY_TEXT, NOTHING, Language, Literal, concatenate, optional

_SPACE = optional(Literal(b" "))


class Layout(Enum):
    """How a whole document is laid out: on one line, or as `json.dumps(..., indent=2)` has it.

    On one line a space may follow each comma and each colon, and no text depends on how deep it stands.
    """

    ONE_LINE = "on one line"
    INDENTED = "indented by two spaces a level"

    def level(self, nesting: int) -> int:
        """What is equal where the same value has the same texts."""
        return nesting if self is Layout.INDENTED else 0

    @property
    def colon(self) -> Language:
        """What stands between a name and its value."""
        return Literal(b": ") if self is Layout.INDENTED else concatenate(Literal(b":"), _SPACE)

    def gaps(self, nesting: int) -> tuple[Language, Language, Language]:
        """The separator, what follows the opening and what precedes the closing bracket of an array or object."""
        if self is Layout.ONE_LINE:
            return concatenate(Literal(b","), _SPACE), EMPTY_TEXT, EMPTY_TEXT
        inner, outer = b"\n" + b"  " * (nesting + 1), b"\n" + b"  " * nesting
        return Literal(b"," + inner), Literal(inner), Literal(outer)

    def enclosed(self, brackets: bytes, content: Language, nesting: int, may_be_empty: bool) -> Language:
        """An array or object: its two `brackets` around `content`, which must not have the empty text.

        The empty one, if that `may_be` as well, is on one line in either layout.
        """
        _, opening, closing = self.gaps(nesting)
        first, last = Literal(brackets[:1]), Literal(brackets[1:])
        content = concatenate(opening, content, closing)
        if may_be_empty:
            content = EMPTY_TEXT if content is NOTHING else optional(content)
        return concatenate(first, content, last)

    def literal(self, value: Any, nesting: int) -> Language:
        """A value; `NOTHING` if there are NaN or the infinities in it, which JSON has no text for."""
        if not value or not isinstance(value, (list, dict)):
            return scalars.literal(value)
        comma, _, _ = self.gaps(nesting)
        content: list[Language] = []
        for key in value:
            item = value[key] if isinstance(value, dict) else key
            if content:
                content.append(comma)
            if isinstance(value, dict):
                content += [Literal(scalars.json_text(key)), self.colon]
            content.append(self.literal(item, nesting + 1))
        return self.enclosed(b"{}" if isinstance(value, dict) else b"[]", concatenate(*content), nesting, False)
