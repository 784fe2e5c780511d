"""The texts of JSON's strings and numbers as regular languages."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from .language import (
    NOTHING,
    Language,
    Literal,
    OneByte,
    Repetition,
    byte_range,
    concatenate,
    embed,
    intersection,
    minimal_dfa,
)
from .pattern import (
    EVERY_CHARACTER,
    json_string_character,
    pattern_language,
    search_language,
)

# Integers of so many digits are exact in every JSON parser, and a number of so many digits in all is told from
# every other such number after it has been rounded to a double.
SIGNIFICANT_DIGITS = 15
EXPONENT_DIGITS = 2
# Of a number within bounds; more where a bound has more.
BOUNDED_FRACTION_DIGITS = 6

_DIGIT = OneByte(byte_range(ord("0"), ord("9")))
_NONZERO_DIGIT = OneByte(byte_range(ord("1"), ord("9")))
_QUOTE = Literal(b'"')

_YEAR = r"(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])"
_MONTH_AND_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))"
)
_LEAP_DAY = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29"
_DATE = rf"(?:{_YEAR}-{_MONTH_AND_DAY}|{_LEAP_DAY})"
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_TIME_SPAN = r"T(?:\d{1,4}H(?:\d{1,2}M(?:\d{1,2}S)?)?|\d{1,4}M(?:\d{1,2}S)?|\d{1,4}S)"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
# No hyphen follows another one: "xn--" has a meaning of its own.
_HOST = r"(?:[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*\.)+[A-Za-z]{2,}"
# The names that formats are made of. Their length is bounded as a whole, for a label has at most 63 characters, a
# host 253 and what stands before an @ 64. That of a URI's host is not: its syntax (RFC 3986) sets no limit.
_NAMES = {
    "<host>": _HOST,
    "<user>": r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*",
}
LONGEST_NAME = 63
_URI_TEXT = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"
_URI = rf"https?://{_HOST}(?::\d{{1,4}})?(?:/{_URI_TEXT})?(?:\?{_URI_TEXT})?(?:#{_URI_TEXT})?"

# Each one a part of what its format allows, in the form that people and programs commonly write.
FORMATS = {
    "date": _DATE,
    "date-time": rf"{_DATE}T{_TIME}",
    "time": _TIME,
    "duration": rf"P(?:\d{{1,4}}W|\d{{1,4}}D(?:{_TIME_SPAN})?|{_TIME_SPAN})",
    "uuid": r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "email": "<user>@<host>",
    "ipv4": rf"{_OCTET}(?:\.{_OCTET}){{3}}",
    "ipv6": r"[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4}){7}",
    "hostname": "<host>",
    "uri": _URI,
    "uri-reference": _URI,
}


FORMATS_WITH_NAMES = frozenset(
    name for name, pattern in FORMATS.items() if any(each in pattern for each in _NAMES)
)


def json_text(value: Any) -> bytes:
    """A value as `json.dumps` writes it, in UTF-8.

    Raises `ValueError` for what JSON has no text for: NaN and the infinities.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair: it has an escape, but no UTF-8.
        return json.dumps(value, allow_nan=False).encode()


def literal(value: Any) -> Language:
    """A value as it is written; `NOTHING` for NaN and the infinities, which JSON has no text for."""
    try:
        return Literal(json_text(value))
    except ValueError:
        return NOTHING


@lru_cache(maxsize=256)
def string(
    minimum: int = 0,
    maximum: int | None = None,
    patterns: frozenset[str] = frozenset(),
    formats: frozenset[str] = frozenset(),
    longest_name: int = LONGEST_NAME,
) -> Language:
    """JSON strings of `minimum` to `maximum` code points in which every pattern is found, of every format.

    A host in them, and what stands before an @, have at most `longest_name` characters. Raises `StateLimitError`,
    and `ConstraintError` for a pattern that can't be read.
    """
    contents = [minimal_dfa(search_language(pattern, json_string_character)) for pattern in sorted(patterns)]
    contents += [minimal_dfa(_format(name, longest_name)) for name in sorted(formats)]
    character = json_string_character(EVERY_CHARACTER)
    if not contents:
        text = concatenate(_QUOTE, Repetition(character, minimum, maximum), _QUOTE)
        # A counter is minimal as it stands, and the surrounding automaton will be made minimal in any case.
        return text if minimum or maximum else embed(minimal_dfa(text))
    if minimum > 0 or maximum is not None:
        contents.append(minimal_dfa(Repetition(character, minimum, maximum)))
    content = contents[0]
    for other in contents[1:]:
        content = intersection(content, other)
    return embed(minimal_dfa(concatenate(_QUOTE, embed(content), _QUOTE)))


@lru_cache(maxsize=64)
def _format(name: str, longest_name: int) -> Language:
    """What stands between the quotes of a string of a format."""
    parts = re.split(f"({'|'.join(_NAMES)})", FORMATS[name])
    return concatenate(
        *(
            _name(part, longest_name) if part in _NAMES else pattern_language(part, json_string_character)
            for part in parts
        )
    )


def _name(kind: str, longest: int) -> Language:
    shortened = Repetition(json_string_character(EVERY_CHARACTER), 1, longest)
    name = minimal_dfa(pattern_language(_NAMES[kind], json_string_character))
    return embed(intersection(name, minimal_dfa(shortened)))
