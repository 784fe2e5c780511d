"""Strings and numbers but for some: what no keyword says, by the difference of automata."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from . import scalars
from .language import (
    ALL_BYTES,
    Language,
    Literal,
    OneByte,
    Repetition,
    byte_range,
    byte_set,
    concatenate,
    difference,
    embed,
    intersection,
    minimal_dfa,
    optional,
    unite,
)
from .numbers import EXACT_DIGITS, multiples

_ANYTHING = Repetition(OneByte(ALL_BYTES), 0, None)
_ZEROS = Repetition(Literal(b"0"), 0, None)
_NO_FRACTION = optional(concatenate(Literal(b".0"), _ZEROS))


def strings_but(strings: Language, patterns: Sequence[str], values: Sequence[Any]) -> Language:
    """Those of the JSON strings in which none of the patterns is found and which are none of the values.

    Raises `StateLimitError`, and `ConstraintError` for a pattern that can't be read.
    """
    texts = frozenset(scalars.json_text(value) for value in values if isinstance(value, str))
    return _strings_but(strings, frozenset(patterns), texts) if patterns or texts else strings


@lru_cache(maxsize=64)
def _strings_but(strings: Language, patterns: frozenset[str], texts: frozenset[bytes]) -> Language:
    dfa = minimal_dfa(strings)
    for pattern in sorted(patterns):
        dfa = difference(dfa, scalars.containing(pattern))
    if texts:
        dfa = difference(dfa, minimal_dfa(unite([Literal(text) for text in sorted(texts)])))
    return embed(dfa)


def numbers_but(numbers: Language, factors: Sequence[int], values: Sequence[Any]) -> Language:
    """Those of the numerals that are no multiple of any factor and none of the values, in any spelling.

    Of what is left those with an exponent are left out, and those with a point and more than 15 digits: a double
    takes some of them for another number. Raises `StateLimitError`.
    """
    excluded = frozenset(
        Decimal(repr(value)) for value in values if isinstance(value, int | float) and not isinstance(value, bool)
    )
    return _numbers_but(numbers, frozenset(factors), excluded) if factors or excluded else numbers


@lru_cache(maxsize=64)
def _numbers_but(numbers: Language, factors: frozenset[int], values: frozenset[Decimal]) -> Language:
    dfa = difference(minimal_dfa(numbers), minimal_dfa(_spelled_oddly()))
    for factor in sorted(factors):
        dfa = difference(dfa, multiples(factor))
    if values:
        dfa = difference(dfa, minimal_dfa(unite([_spellings(value) for value in sorted(values)])))
    return embed(dfa)


@lru_cache(maxsize=1)
def _spelled_oddly() -> Language:
    exponent = concatenate(_ANYTHING, OneByte(byte_set(b"eE")), _ANYTHING)
    digits = OneByte(byte_range(ord("0"), ord("9")) | byte_set(b"."))
    sign = optional(Literal(b"-"))
    # One of them is the point. That of an integer is no matter, with whose digits nothing is rounded.
    long = intersection(
        minimal_dfa(concatenate(sign, Repetition(digits, EXACT_DIGITS + 2, None))),
        minimal_dfa(concatenate(_ANYTHING, Literal(b"."), _ANYTHING)),
    )
    return unite([exponent, embed(long)])


def _spellings(value: Decimal) -> Language:
    """All numerals of a number without an exponent."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    if value == 0:
        return concatenate(optional(Literal(b"-")), Literal(b"0"), _NO_FRACTION)
    return concatenate(Literal(text.encode()), _ZEROS if "." in text else _NO_FRACTION)
