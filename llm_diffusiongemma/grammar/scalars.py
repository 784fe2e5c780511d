"""The texts of JSON's strings as regular languages."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from .characters import EVERY_CHARACTER, json_string_character
from .dfa import ByteDFA
from .formats import LONGEST_NAMES, format_language
from .language import (
    MAX_STATES,
    NOTHING,
    Language,
    Literal,
    Repetition,
    StateLimitError,
    concatenate,
    embed,
    intersection,
    minimal_dfa,
)
from .pattern import search_language

# The most that `Limits.name` can be.
LONGEST_NAME = max(LONGEST_NAMES.values())

_QUOTE = Literal(b'"')

# Of a character that is counted: before it, behind a backslash, and within its UTF-8.
_STATES_OF_CHARACTER = 9


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

    Names in them that have to be counted have at most `longest_name` characters. Raises `StateLimitError`, and
    `ConstraintError` for a pattern that can't be read.
    """
    contents = [_found_in(pattern) for pattern in sorted(patterns)]
    ends = False
    for name in sorted(formats):
        language, is_short = format_language(name, longest_name, maximum)
        contents.append(minimal_dfa(language))
        ends = ends or is_short
    character = json_string_character(EVERY_CHARACTER)
    if not contents:
        if minimum * _STATES_OF_CHARACTER > MAX_STATES:
            raise StateLimitError  # how many are missing is known in each state, so no drawing is needed to see it
        text = concatenate(_QUOTE, Repetition(character, minimum, maximum), _QUOTE)
        # A counter is minimal as it stands, and the surrounding automaton will be made minimal in any case.
        return text if minimum or maximum else embed(minimal_dfa(text))
    if ends:
        maximum = None
    if minimum > 0 or maximum is not None:
        contents.append(_counted(minimum, maximum))
    content = contents[0]
    for other in contents[1:]:
        content = intersection(content, other)
    return embed(minimal_dfa(concatenate(_QUOTE, embed(content), _QUOTE)))


@lru_cache(maxsize=256)
def containing(pattern: str) -> ByteDFA:
    """The JSON strings in which the pattern is found. Raises what `string` does."""
    return minimal_dfa(string(patterns=frozenset((pattern,))))


@lru_cache(maxsize=256)
def _found_in(pattern: str) -> ByteDFA:
    """What can stand between the quotes of a string in which the pattern is found."""
    return minimal_dfa(search_language(pattern, json_string_character))


@lru_cache(maxsize=64)
def _counted(minimum: int, maximum: int | None) -> ByteDFA:
    return minimal_dfa(Repetition(json_string_character(EVERY_CHARACTER), minimum, maximum))
