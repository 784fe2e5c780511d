"""The texts of JSON's strings as regular languages."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np

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
    contents = [_all_found_in(tuple(sorted(patterns)))] if patterns else []
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
    content = contents[0]
    for other in contents[1:]:
        content = intersection(content, other)
    if maximum is not None or minimum > (0 if content.accepting[0] else 1):
        content = intersection(content, _counted(minimum, maximum))
    return embed(quoted(content))


@lru_cache(maxsize=256)
def containing(pattern: str) -> ByteDFA:
    """The JSON strings in which the pattern is found. Raises what `string` does."""
    return minimal_dfa(string(patterns=frozenset((pattern,))))


@lru_cache(maxsize=256)
def _all_found_in(patterns: tuple[str, ...]) -> ByteDFA:
    """Likewise for one or several patterns. Of many together often all but the last have been together before."""
    last = _found_in(patterns[-1])
    return intersection(_all_found_in(patterns[:-1]), last) if patterns[:-1] else last


@lru_cache(maxsize=256)
def _found_in(pattern: str) -> ByteDFA:
    """What can stand between the quotes of a string in which the pattern is found."""
    return minimal_dfa(search_language(pattern, json_string_character))


@lru_cache(maxsize=64)
def _counted(minimum: int, maximum: int | None) -> ByteDFA:
    return minimal_dfa(Repetition(json_string_character(EVERY_CHARACTER), minimum, maximum))


def quoted(content: ByteDFA) -> ByteDFA:
    """The minimal automaton of what a minimal one takes, in quotes."""
    start, end, dead = 0, ord('"'), content.dead
    accepting = content.accepting[:dead]
    ends = content.moves[:dead, content.byte_kind[end]]
    # What follows a backslash may be the same as the whole: a quote, and the content once more.
    like_start = (content.moves[np.flatnonzero(ends == start)][:, content.byte_kind] != dead).sum(1) == 1
    if dead == 0 or (ends[accepting] != dead).any() or like_start.any():
        return minimal_dfa(concatenate(_QUOTE, embed(content), _QUOTE))
    # No two states take the same because of the quotes, so only their numbers change: the nearest to the start
    # come first, and behind the first of them that accepts comes the end.
    first = int(accepting.argmax())
    before = [content.moves[:first].ravel(), content.moves[first, content.byte_kind[:end]]]
    near = np.concatenate([[start], *before])
    last = int(near[near < dead].max()) + 2
    numbers = np.arange(1, dead + 2, dtype=np.int32)
    numbers[last - 1 :] += 1
    states, kinds = content.moves.shape
    moves = np.full((states + 2, kinds + 1), dead + 2, np.int32)
    moves[numbers[:dead], :kinds] = numbers[content.moves[:dead]]
    moves[numbers[:dead], kinds] = np.where(accepting, last, numbers[ends])
    moves[start, kinds] = 1
    byte_class = content.byte_kind.copy()
    byte_class[end] = kinds
    return ByteDFA.of(moves, byte_class, np.arange(states + 2) == last)
