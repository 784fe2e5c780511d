"""Gemma's call syntax: `call:NAME{key:value,...}` between two control tokens.

A call arrives as units: characters of plain text, and control tokens by name. So a string that merely
spells `<|"|>` does not end there, and within a string every control token but the quote is text.
"""

from __future__ import annotations

from typing import Any

CALL_OPENS, CALL_CLOSES = "<|tool_call>", "<tool_call|>"
QUOTE = '<|"|>'
MAX_DEPTH = 64

_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None, "nil": None}
_PREFIX = "call:"


class MalformedCallError(ValueError):
    """What stands between the two control tokens is no call."""


def parse_call(units: list[str]) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of one call, given as what stands between its two control tokens.

    Raises `MalformedCallError`.
    """
    return _Scanner(units).call()


class _Scanner:
    """Reads units from left to right, never backwards."""

    def __init__(self, units: list[str]) -> None:
        self._units = units
        self._at = 0

    def call(self) -> tuple[str, dict[str, Any]]:
        self._skip_blanks()
        for expected in _PREFIX:
            self._expect(expected)
        name = self._take_until("{").strip()
        if not name or not all(character.isalnum() or character in "_-." for character in name):
            raise MalformedCallError(f"{name!r} is no tool's name")
        arguments = self._object(depth=1)
        self._skip_blanks()
        if self._peek() is not None:
            raise MalformedCallError("something follows the arguments")
        return name, arguments

    def _object(self, depth: int) -> dict[str, Any]:
        self._expect("{")
        result: dict[str, Any] = {}
        while True:
            self._skip_blanks()
            if self._take_if("}"):
                return result
            if self._take_if(","):
                continue
            key = self._string() if self._peek() == QUOTE else self._take_until(":,}").strip()
            self._skip_blanks()
            result[key] = self._value(depth) if self._take_if(":") else None
            self._end_item("}")

    def _array(self, depth: int) -> list[Any]:
        self._expect("[")
        result: list[Any] = []
        while True:
            self._skip_blanks()
            if self._take_if("]"):
                return result
            if self._take_if(","):
                continue
            result.append(self._value(depth))
            self._end_item("]")

    def _value(self, depth: int) -> Any:
        self._skip_blanks()
        opener = self._peek()
        if opener not in ("{", "[", QUOTE):
            return _bare(self._take_until(",}]").strip())
        if depth == MAX_DEPTH:
            raise MalformedCallError("nested too deeply")
        if opener == QUOTE:
            return self._string()
        return self._object(depth + 1) if opener == "{" else self._array(depth + 1)

    def _end_item(self, closer: str) -> None:
        """Whatever is read, the loops over items go on only behind a comma: no reply can hold them up."""
        self._skip_blanks()
        if self._peek() != closer:
            self._expect(",")

    def _string(self) -> str:
        self._expect(QUOTE)
        start = self._at
        while self._next() != QUOTE:
            pass
        return "".join(self._units[start : self._at - 1])

    def _take_until(self, ends: str) -> str:
        """The text up to one of these characters, which is not taken."""
        start = self._at
        while (unit := self._peek()) is None or unit not in ends:
            if unit is None or len(unit) > 1:
                raise MalformedCallError("cut off" if unit is None else f"{unit} outside of a string")
            self._at += 1
        return "".join(self._units[start : self._at])

    def _skip_blanks(self) -> None:
        while (unit := self._peek()) is not None and unit.isspace():
            self._at += 1

    def _peek(self) -> str | None:
        return self._units[self._at] if self._at < len(self._units) else None

    def _next(self) -> str:
        unit = self._peek()
        if unit is None:
            raise MalformedCallError("cut off")
        self._at += 1
        return unit

    def _take_if(self, unit: str) -> bool:
        if self._peek() != unit:
            return False
        self._at += 1
        return True

    def _expect(self, unit: str) -> None:
        if not self._take_if(unit):
            raise MalformedCallError(f"{unit} expected")


def _bare(text: str) -> Any:
    """An unquoted value. What is no literal is a string; nothing at all is null."""
    if not text:
        return None
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    # Python's numbers allow more than this syntax does: underscores, "nan", digits of other scripts.
    if all(character in "+-0123456789.eE" for character in text):
        for number in (int, float):
            try:
                value = number(text)
            except ValueError:
                continue
            # Infinity is no JSON.
            return value if value not in (float("inf"), float("-inf")) else text
    return text
