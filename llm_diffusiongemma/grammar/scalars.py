"""The texts of JSON's strings and numbers as regular languages."""

from __future__ import annotations

import json
import re
from decimal import (
    ROUND_CEILING,
    ROUND_FLOOR,
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
    localcontext,
)
from functools import lru_cache
from typing import Any

import numpy as np

from .characters import EVERY_CHARACTER, json_string_character
from .dfa import ByteDFA
from .language import (
    EMPTY_TEXT,
    NOTHING,
    Language,
    Literal,
    OneByte,
    Repetition,
    byte_range,
    byte_set,
    concatenate,
    embed,
    intersection,
    minimal_dfa,
    optional,
    unite,
)
from .pattern import pattern_language, search_language

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


@lru_cache(maxsize=256)
def number() -> Language:
    """JSON numbers of at most 15 digits before and after the point, with an exponent of at most two digits."""
    fraction = concatenate(Literal(b"."), Repetition(_DIGIT, 1, SIGNIFICANT_DIGITS))
    exponent = concatenate(
        OneByte(byte_set(b"eE")), optional(OneByte(byte_set(b"+-"))), Repetition(_DIGIT, 1, EXPONENT_DIGITS)
    )
    return embed(
        minimal_dfa(concatenate(optional(Literal(b"-")), _whole_numeral(), optional(fraction), optional(exponent)))
    )


def _whole_numeral() -> Language:
    return unite([Literal(b"0"), concatenate(_NONZERO_DIGIT, Repetition(_DIGIT, 0, SIGNIFICANT_DIGITS - 1))])


@lru_cache(maxsize=256)
def integer(minimum: int | None = None, maximum: int | None = None, multiple_of: int = 1) -> Language:
    """Integers within the bounds; of at most 15 digits where a bound doesn't say how many.

    Raises `StateLimitError`.
    """
    longest = max(
        [SIGNIFICANT_DIGITS, *(len(str(abs(bound))) for bound in (minimum, maximum) if bound is not None)]
    )
    largest = 10**longest - 1
    low = -largest if minimum is None else minimum
    high = largest if maximum is None else maximum
    dfa = minimal_dfa(_decimals_between(low, high, 0))
    if multiple_of > 1:
        dfa = intersection(dfa, _multiples(multiple_of))
    return embed(dfa)


def _multiples(factor: int) -> ByteDFA:
    """The numerals, signed or not, of the multiples of a number. Raises `StateLimitError`."""
    # State 0 is before the first digit, state 1 + r has read a numeral of remainder r.
    transitions = np.full((factor + 2, 256), factor + 1, np.int32)
    transitions[0, ord("-")] = 0
    for digit in range(10):
        transitions[0, ord("0") + digit] = 1 + digit % factor
        transitions[1:-1, ord("0") + digit] = 1 + (10 * np.arange(factor) + digit) % factor
    accepting = np.zeros(factor + 2, np.bool_)
    accepting[1] = True
    # Its product with itself is the same language, minimised.
    dfa = ByteDFA.of(transitions, np.arange(256), accepting)
    return intersection(dfa, dfa)


def _arithmetic(digits: int = 28, rounding: str = ROUND_HALF_EVEN) -> Context:
    """Python's defaults, whatever the host program's context is: a bound that it rounds is another bound."""
    traps = [DivisionByZero, InvalidOperation, Overflow]
    return Context(digits, rounding, Emin=-999_999, Emax=999_999, capitals=1, clamp=0, flags=[], traps=traps)


@lru_cache(maxsize=256)
def bounded_number(
    minimum: Decimal | None, above: Decimal | None, maximum: Decimal | None, below: Decimal | None
) -> Language:
    """Decimal numbers x without an exponent: minimum <= x <= maximum, above < x < below.

    They have at most 15 digits, so that rounding to a double can't move one onto a bound that it must not reach.
    Raises `StateLimitError`.
    """
    with localcontext(_arithmetic()):
        bounds = [bound for bound in (minimum, above, maximum, below) if bound is not None]
        inward_up, inward_down = (
            _arithmetic(SIGNIFICANT_DIGITS, rounding) for rounding in (ROUND_CEILING, ROUND_FLOOR)
        )
        own_digits = max((-int(bound.normalize().as_tuple().exponent) for bound in bounds), default=0)
        finest = min(max(BOUNDED_FRACTION_DIGITS, own_digits + 1), SIGNIFICANT_DIGITS - 1)
        lengths: list[Language] = []
        for fraction_digits in range(finest + 1):
            scale = Decimal(10) ** fraction_digits
            low = -(10**SIGNIFICANT_DIGITS) + 1
            high = -low
            if minimum is not None:
                low = max(low, int((minimum * scale).to_integral_value(ROUND_CEILING)))
            if above is not None:
                rounded = inward_up.plus(above)
                first = int((rounded * scale).to_integral_value(ROUND_CEILING))
                low = max(low, first + (first == above * scale))
            if maximum is not None:
                high = min(high, int((maximum * scale).to_integral_value(ROUND_FLOOR)))
            if below is not None:
                rounded = inward_down.plus(below)
                last = int((rounded * scale).to_integral_value(ROUND_FLOOR))
                high = min(high, last - (last == below * scale))
            lengths.append(_decimals_between(low, high, fraction_digits))
    return embed(minimal_dfa(unite(lengths)))


def _decimals_between(low: int, high: int, fraction_digits: int) -> Language:
    """Numerals with so many digits after the point, from `low` to `high` in units of the last one.

    Zero has no sign.
    """
    negative = _numerals(max(1, -high), -low, fraction_digits)
    return unite([concatenate(Literal(b"-"), negative), _numerals(max(0, low), high, fraction_digits)])


def _numerals(low: int, high: int, fraction_digits: int) -> Language:
    """As `_decimals_between`, with `low` not negative."""
    shortest = fraction_digits + 1
    lengths: list[Language] = []
    for length in range(shortest, len(str(max(high, 0))) + 1 if high >= 10**shortest else shortest + 1):
        first = max(low, 10 ** (length - 1) if length > shortest else 0)
        last = min(high, 10**length - 1)
        if first <= last:
            lengths.append(_digits_between(f"{first:0{length}}", f"{last:0{length}}", fraction_digits))
    return unite(lengths)


def _digits_between(low: str, high: str, fraction_digits: int) -> Language:
    """The texts of so many digits from `low` to `high`, in order, with a point before the fraction's."""
    if not low:
        return EMPTY_TEXT
    point = Literal(b"." if len(low) == fraction_digits else b"")
    rest = len(low) - 1
    lowest, highest = "0" * rest, "9" * rest
    first, last = int(low[0]), int(high[0])
    if first == last:
        return concatenate(point, _digit(first, last), _digits_between(low[1:], high[1:], fraction_digits))
    if low[1:] == lowest and high[1:] == highest:
        return concatenate(point, _digit(first, last), _digits_between(lowest, highest, fraction_digits))
    branches = [
        concatenate(_digit(first, first), _digits_between(low[1:], highest, fraction_digits)),
        concatenate(_digit(last, last), _digits_between(lowest, high[1:], fraction_digits)),
    ]
    if last - first > 1:
        branches.append(
            concatenate(_digit(first + 1, last - 1), _digits_between(lowest, highest, fraction_digits))
        )
    return concatenate(point, unite(branches))


def _digit(first: int, last: int) -> Language:
    return OneByte(byte_range(ord("0") + first, ord("0") + last))
