"""Gemma's call syntax: `call:NAME{key:value,...}` between two control tokens.

A call arrives as units: characters of plain text, and control tokens by name. So a string that merely
spells `<|"|>` does not end there, and within a string every control token but the quote is text.

**Invariant**: a value that may be wrong never reaches a tool. What the syntax doesn't know, such as plain
quotes, is read where it can mean but one thing; what can mean two things, or nothing, is no call:
quotes that close nowhere or in the middle of a value, keys without a value or twice, a bare value with
quotation marks, brackets or another key in it, or one that isn't of its parameter's type.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

from .parameters import Parameter, Schema, type_of

CALL_OPENS, CALL_CLOSES = "<|tool_call>", "<tool_call|>"
QUOTE = '<|"|>'
PLAIN_QUOTES = ("'", '"')
MAX_DEPTH = 64

_PREFIX = "call:"
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None, "nil": None}
# JSON's numbers: Python's have underscores, "nan" and digits of other scripts. No leading zeros and no
# plus, which numbers of houses, accounts and telephones have.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NUMBER_AS_DECLARED = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# From here on not every integer is a double.
_EXACT = 2**53
# Names that nobody declared.
_TOOL_NAME = re.compile(r"[\w.-]+")
_KEY = re.compile(r"[\w$@./-]+")
_KEY_OF_WORDS = re.compile(rf"{_KEY.pattern}(?: {_KEY.pattern})*")
# What a bare value can't hold: brackets, lines, and quotation marks but the apostrophe within a word. And it
# can't begin with what assigns.
_DOUBTFUL = re.compile(r"""^[:=]|[{}\[\]\r\n"`“”„‟«»‹›‚‛]|(?<!\w)['’‘]|['’‘](?!\w)""")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
# As in JSON, without the two that nobody means: `\b` and `\f` stand in paths and regular expressions.
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "/": "/", "\\": "\\", '"': '"', "'": "'"}


# Paths of Windows: what would be an escape in them is a separator of folders, unless they double it.
_PATH = re.compile(r"(?:[A-Za-z]:|\\).*|\S+\.\w{1,5}", re.DOTALL)
_LETTER_ESCAPE = re.compile(r"(?<!\\)\\[nrtu]")
# Of a number with separators, the part behind one.
_THOUSANDS = re.compile(r"0[0-9]{2}")
_KEY_WITHIN = re.compile(r"\s[^\W\d]\w*\s*[:=]")


class MalformedCallError(ValueError):
    """What stands between the two control tokens is no call, or none that is beyond doubt."""


def parse_call(units: list[str], tools: Mapping[str, Schema] | None = None) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of one call, given as what stands between its two control tokens.

    `tools` maps the declared tools' names to the schemas of their arguments. A tool that is not among them
    can be called, too, if its name is a word: llm tells the model that there is none.

    Raises `MalformedCallError`.
    """
    return _Scanner(units, tools or {}).call()


class _Scanner:
    """Reads units from left to right, never backwards."""

    def __init__(self, units: list[str], tools: Mapping[str, Schema]) -> None:
        self._units = units
        self._tools = tools
        self._at = 0

    def call(self) -> tuple[str, dict[str, Any]]:
        self._skip_blanks()
        for expected in _PREFIX:
            self._expect(expected)
        name = self._name()
        self._skip_blanks()
        arguments = self._object(Parameter.of_tool(self._tools.get(name, {})), depth=1)
        self._skip_blanks()
        if self._peek() is not None:
            raise MalformedCallError("something follows the arguments")
        return name, arguments

    def _name(self) -> str:
        self._skip_blanks()
        for declared in sorted(self._tools, key=len, reverse=True):
            if self._take_name(declared.strip(), before="{"):
                return declared
        name = self._take_until("{").strip()
        if not _TOOL_NAME.fullmatch(name):
            raise MalformedCallError(f"{name!r} is no tool's name")
        return name

    def _object(self, declared: Parameter, depth: int) -> dict[str, Any]:
        self._expect("{")
        result: dict[str, Any] = {}
        after_bare = False
        while True:
            self._skip_blanks()
            if self._take_if("}"):
                return result
            key = self._key(declared, after_bare)
            if key in result:
                raise MalformedCallError(f"{key!r} twice")
            self._skip_blanks()
            self._expect(":")
            self._skip_blanks()
            after_bare = self._peek() not in ("{", "[", QUOTE, *PLAIN_QUOTES)
            result[key] = self._value(declared.property(key), depth, declared)
            self._end_item("}")

    def _key(self, declared: Parameter, after_bare: bool) -> str:
        """`after_bare` says that the value before it had no quotes: what follows a comma may belong to it."""
        if self._peek() == QUOTE:
            return self._string()
        if self._peek() in PLAIN_QUOTES:
            return self._plain_string(":")
        for name in declared.names:
            if self._take_name(name, before=":"):
                return name
        key = self._take_until(":,}").strip()
        is_key = (_KEY if after_bare else _KEY_OF_WORDS).fullmatch(key)
        if not is_key or (after_bare and not declared.is_open):
            raise MalformedCallError(f"{key!r} may be no key")
        return key

    def _array(self, declared: Parameter, depth: int) -> list[Any]:
        self._expect("[")
        result: list[Any] = []
        while True:
            self._skip_blanks()
            if self._take_if("]"):
                return result
            if result and self._peek_bare(_THOUSANDS):
                raise MalformedCallError("a number may have separators")
            result.append(self._value(declared.item(len(result)), depth))
            self._end_item("]")

    def _value(self, declared: Parameter, depth: int, around: Parameter | None = None) -> Any:
        """`around` is the object that the value stands in, if it is none of an array."""
        opener = self._peek()
        if opener == QUOTE:
            return _quoted(self._string(), declared.types, around)
        if opener in PLAIN_QUOTES:
            return _quoted(self._plain_string(",}]"), declared.types, around)
        if opener not in ("{", "["):
            return _bare(self._take_until(",}]").strip(), declared.types, around)
        if depth == MAX_DEPTH:
            raise MalformedCallError("nested too deeply")
        kind = "object" if opener == "{" else "array"
        if declared.types is not None and kind not in declared.types:
            raise MalformedCallError(f"an {kind} was not declared")
        return self._object(declared, depth + 1) if opener == "{" else self._array(declared, depth + 1)

    def _peek_bare(self, pattern: re.Pattern[str]) -> bool:
        """Whether what stands here without quotes is of that form."""
        rest = itertools.takewhile(lambda unit: unit not in (",", "]", "}"), self._units[self._at :])
        return bool(pattern.fullmatch("".join(rest).strip()))

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

    def _plain_string(self, ends: str) -> str:
        """A string in quotes that are no control tokens. One of `ends` has to follow it."""
        quote = self._next()
        start = self._at
        while (unit := self._next()) != quote or self._is_apostrophe():
            if len(unit) > 1:
                raise MalformedCallError(f"{unit} in plain quotes")
            if unit == "\\":
                self._next()
        text = "".join(self._units[start : self._at - 1])
        self._skip_blanks()
        if (unit := self._peek() or "") not in tuple(ends):
            raise MalformedCallError(f"{unit!r} follows a quote")
        return _unescape(text)

    def _is_apostrophe(self) -> bool:
        """Whether the unit just taken stands within a word."""
        around = (self._units[self._at - 2], self._peek() or "")
        return self._units[self._at - 1] == "'" and all(len(unit) == 1 and unit.isalnum() for unit in around)

    def _take_name(self, name: str, before: str) -> bool:
        """Take a name, whatever characters it has, if it is what stands before that character."""
        end = self._at + len(name)
        if not name or self._units[self._at : end] != list(name):
            return False
        if next((unit for unit in self._units[end:] if not unit.isspace()), None) != before:
            return False
        self._at = end
        return True

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


def _quoted(text: str, types: frozenset[str] | None, around: Parameter | None) -> Any:
    """A value in quotes: a text, or where none was declared what it says."""
    for name in around.names if around else ():  # the quotes of two items, which are not of one kind
        if re.search(rf"""["']\s*,\s*{re.escape(name)}\s*:\s*["']""", text):
            raise MalformedCallError(f"{text!r} may be more than one item")
    return text if types is None or "string" in types else _bare(text.strip(), types)


def _bare(text: str, types: frozenset[str] | None, around: Parameter | None = None) -> Any:
    """A value without quotes: a literal of a declared type, else the text itself if it may be one."""
    if not text:
        raise MalformedCallError("a value is missing")
    if _DOUBTFUL.search(text):
        raise MalformedCallError(f"{text!r} needs quotes")
    for name in around.names if around else ():  # the comma between two items is missing
        if re.search(rf"(?:^|[\s;]){re.escape(name)}\s*[:=]", text):
            raise MalformedCallError(f"{text!r} may be more than one item")
    if around and around.is_open and _KEY_WITHIN.search(text):
        raise MalformedCallError(f"{text!r} may be more than one item")
    value = _literal(text)
    if types is None or type_of(value) in types:
        return value
    if "string" in types and value is not None:
        return text
    if "integer" in types and (number := _number(text)) is not None:
        if "number" in types or isinstance(number, int):
            return number
        if number.is_integer() and abs(number) <= _EXACT:
            return int(number)
    raise MalformedCallError(f"{text!r} is none of {sorted(types)}")


def _literal(text: str) -> Any:
    """What is no literal is a string."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    number = _number(text) if _NUMBER.fullmatch(text) else None
    return text if number is None else number


def _number(text: str) -> int | float | None:
    """None for what is no number, or none that JSON has."""
    if not _NUMBER_AS_DECLARED.fullmatch(text):
        return None
    try:
        return int(text)
    except ValueError:  # also of thousands of digits
        value = float(text)
    return value if math.isfinite(value) else None


def _unescape(text: str) -> str:
    if _PATH.fullmatch(text) and _LETTER_ESCAPE.search(text) and "\\\\" not in text[1:]:
        raise MalformedCallError(f"{text!r} may be a path")

    def character(escape: re.Match[str]) -> str:
        code = escape[1]
        if len(code) > 1:
            return chr(int(code[1:], 16))
        if code not in _ESCAPED:
            raise MalformedCallError(f"\\{code} may be no escape")
        return _ESCAPED[code]

    try:
        # Two escapes may be the halves of one character.
        return _ESCAPE.sub(character, text).encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise MalformedCallError("half of a surrogate pair") from error
