"""Regular expressions and choices → regular language.

The dialect is what Python's `re` and JSON schema's ECMA-262 have in common, for a reply is checked by the one
and was asked for in the other. Where they differ the language is what both accept: `\\d`, `\\w` and `\\s` are
ASCII, `\\D` and `\\W` as well, `.` excludes every line end.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

from ..errors import ConstraintError
from .dfa import ByteDFA
from .language import (
    EMPTY_TEXT,
    MAX_STATES,
    Anchor,
    Language,
    Literal,
    OneByte,
    Repetition,
    StateLimitError,
    byte_range,
    byte_set,
    concatenate,
    embed,
    minimal_dfa,
    unite,
)

# How far a counter like {0,1000} goes, and how deep groups nest.
MAX_COUNT = 1000
MAX_NESTING = 40

MAX_PATTERN_LENGTH = 10_000
MAX_CHOICES_LENGTH = 100_000

MAX_CODE_POINT = 0x10FFFF

# Sorted and disjoint ranges of code points, both ends included.
Ranges = tuple[tuple[int, int], ...]

EVERY_CHARACTER: Ranges = ((0, MAX_CODE_POINT),)

_DIGITS: Ranges = ((ord("0"), ord("9")),)
_WORD: Ranges = ((ord("0"), ord("9")), (ord("A"), ord("Z")), (ord("_"), ord("_")), (ord("a"), ord("z")))
_SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
_BEYOND_ASCII: Ranges = ((0x80, MAX_CODE_POINT),)
# What only one of the dialects takes for a space, and all that either takes for a line end.
_SPACE_SOMEWHERE: Ranges = (
    (0x1C, 0x1F),
    (0x85, 0x85),
    (0xA0, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x202F, 0x202F),
    (0x205F, 0x205F),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),
)
LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))

_CONTROL_ESCAPES = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "a": 0x07, "0": 0x00}
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}

_GROUPS_REFUSED = {
    "?=": "a look-ahead",
    "?!": "a look-ahead",
    "?<=": "a look-behind",
    "?<!": "a look-behind",
    "?P=": "a back-reference",
    "?>": "an atomic group",
    "?(": "a conditional",
}


def regex_language(pattern: str) -> ByteDFA:
    """All UTF-8 texts that the whole pattern matches, as by `re.fullmatch`.

    Raises `ConstraintError`.
    """
    language = pattern_language(pattern, utf8)
    try:
        dfa = minimal_dfa(language)
    except StateLimitError:
        raise ConstraintError(
            f"The regular expression {_shown(pattern)} needs an automaton of more than {MAX_STATES:,} states. "
            "Use smaller counters, or fewer of them."
        ) from None
    if dfa.dead == 0:
        raise ConstraintError(f"No text matches the regular expression {_shown(pattern)}.")
    return dfa


def may_backtrack(pattern: str) -> bool:
    """Whether Python's matcher may try every way to split a text: a repeated group repeats or chooses inside."""
    return re.search(r"[*+?}|].*\)[*+{]", pattern, re.DOTALL) is not None


def is_found(pattern: str, text: str) -> bool:
    """What `re.search` says, but in a time that does not double with each character. Raises `ConstraintError`."""
    if may_backtrack(pattern):
        return _search_automaton(pattern).accepts(text.encode("utf-8", "surrogatepass"))
    return re.search(pattern, text) is not None


@lru_cache(maxsize=64)
def _search_automaton(pattern: str) -> ByteDFA:
    return minimal_dfa(search_language(pattern, utf8))


def check_choices(choices: Sequence[str]) -> None:
    """Raises `ConstraintError` if there are none, one is empty or no text, or one is there twice."""
    if not choices:
        raise ConstraintError("There are no choices to choose from. Name at least one.")
    if sum(map(len, choices)) > MAX_CHOICES_LENGTH:
        raise ConstraintError(f"The choices have more than {MAX_CHOICES_LENGTH:,} characters together. Use fewer.")
    seen: set[str] = set()
    for choice in choices:
        if not choice:
            raise ConstraintError("A choice is empty, and a reply can't be. Leave it out.")
        if choice in seen:
            raise ConstraintError(f"The choice {_shown(choice)} is there twice. Leave one out.")
        seen.add(choice)
        try:
            choice.encode()
        except UnicodeEncodeError:
            raise ConstraintError("A choice has half of a surrogate pair in it, which isn't text.") from None


def choices_language(choices: Sequence[str]) -> ByteDFA:
    """Exactly these texts. Raises what `check_choices` does, and `ConstraintError` for too many."""
    check_choices(choices)
    try:
        return minimal_dfa(unite([Literal(choice.encode()) for choice in choices]))
    except StateLimitError:
        raise ConstraintError(
            f"The choices need an automaton of more than {MAX_STATES:,} states. Use fewer or shorter ones."
        ) from None


def pattern_language(pattern: str, encode: Callable[[Ranges], Language]) -> Language:
    """What a pattern matches, `encode` giving the bytes of one character out of ranges.

    Its anchors refer to the whole text that the result is made an automaton of. Raises `ConstraintError`.
    """
    return _Parser(pattern, encode).parse()


def search_language(pattern: str, encode: Callable[[Ranges], Language]) -> Language:
    """All texts in which the pattern is found, as by `re.search`. Raises `ConstraintError`."""
    anything = Repetition(encode(EVERY_CHARACTER), 0, None)
    return concatenate(anything, pattern_language(pattern, encode), anything)


@lru_cache(maxsize=256)
def utf8(ranges: Ranges) -> Language:
    """The UTF-8 of one character out of the ranges; surrogates have none."""
    sequences: list[Language] = []
    for first, last in ranges:
        for low, high in ((first, min(last, 0xD7FF)), (max(first, 0xE000), last)):
            if low <= high:
                sequences += _utf8_sequences(low, high)
    if all(isinstance(sequence, OneByte) for sequence in sequences):
        return unite(sequences)
    # Determinised once here instead of at each place where it stands.
    return embed(minimal_dfa(unite(sequences)))


def _utf8_sequences(first: int, last: int) -> list[Language]:
    """The UTF-8 of the code points of a range, cut where the bytes' ranges are independent of each other."""
    for longest in (0x7F, 0x7FF, 0xFFFF):
        if first <= longest < last:
            return _utf8_sequences(first, longest) + _utf8_sequences(longest + 1, last)
    for bits in (6, 12, 18):
        rest = (1 << bits) - 1
        if first > 0x7F and first >> bits != last >> bits:
            if first & rest:
                return _utf8_sequences(first, first | rest) + _utf8_sequences((first | rest) + 1, last)
            if last & rest != rest:
                return _utf8_sequences(first, (last & ~rest) - 1) + _utf8_sequences(last & ~rest, last)
    pairs = zip(chr(first).encode(), chr(last).encode(), strict=True)
    bytes_ = [OneByte(byte_range(low, high)) for low, high in pairs]
    return [bytes_[0] if len(bytes_) == 1 else concatenate(*bytes_)]


@lru_cache(maxsize=256)
def json_string_character(ranges: Ranges) -> Language:
    """One character out of the ranges as it stands between the quotes of a JSON string.

    A character has one form: itself, or a backslash and a letter where it must be escaped. That leaves out the
    control characters that have no such letter.
    """
    escapes = {0x22: '"', 0x5C: "\\", 0x08: "b", 0x0C: "f", 0x0A: "n", 0x0D: "r", 0x09: "t"}
    escaped = [letter for point, letter in escapes.items() if _contains(ranges, point)]
    plain = _without(ranges, ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)))
    parts = [utf8(plain)]
    if escaped:
        parts.append(concatenate(Literal(b"\\"), OneByte(byte_set(map(ord, escaped)))))
    return embed(minimal_dfa(unite(parts)))


def _contains(ranges: Ranges, point: int) -> bool:
    return any(first <= point <= last for first, last in ranges)


def _union(*sets: Ranges) -> Ranges:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(pair for ranges in sets for pair in ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def _complement(ranges: Ranges) -> Ranges:
    edges = [-1, *(edge for pair in ranges for edge in pair), MAX_CODE_POINT + 1]
    gaps = [(edges[i] + 1, edges[i + 1] - 1) for i in range(0, len(edges), 2)]
    return tuple((first, last) for first, last in gaps if first <= last)


def _without(ranges: Ranges, removed: Ranges) -> Ranges:
    return _complement(_union(_complement(ranges), removed))


def all_but(*sets: Ranges) -> Ranges:
    """The characters in none of the sets."""
    return _complement(_union(*sets))


# What either of the dialects takes for it.
WHITE_SPACE: Ranges = _union(_SPACE, _SPACE_SOMEWHERE)


# A class escape as what it matches in both dialects, and as what it matches in at least one. Negation swaps
# the two: `[^\w]` must not match what only one dialect takes for a word character.
_CLASSES: dict[str, tuple[Ranges, Ranges]] = {}
for _letter, _everywhere, _somewhere in (
    ("d", _DIGITS, _union(_DIGITS, _BEYOND_ASCII)),
    ("w", _WORD, _union(_WORD, _BEYOND_ASCII)),
    ("s", _SPACE, _union(_SPACE, _SPACE_SOMEWHERE)),
):
    _CLASSES[_letter] = _everywhere, _somewhere
    _CLASSES[_letter.upper()] = _complement(_somewhere), _complement(_everywhere)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


class _Parser:
    """Reads a pattern from left to right and makes a language of it."""

    def __init__(self, pattern: str, encode: Callable[[Ranges], Language]) -> None:
        self.pattern = pattern
        self.encode = encode
        self.position = 0
        self.nesting = 0

    def parse(self) -> Language:
        if len(self.pattern) > MAX_PATTERN_LENGTH:
            raise ConstraintError(
                f"The regular expression {_shown(self.pattern)} is longer than {MAX_PATTERN_LENGTH:,} characters. "
                "Shorten it."
            )
        language = self._alternatives()
        if self.position < len(self.pattern):
            raise self._invalid("unbalanced parenthesis")
        # What we can read is still no regular expression if the reply's check can't: `*` where nothing stands
        # to repeat, a group's name given twice.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise self._invalid(str(error)) from None
        return language

    def _invalid(self, reason: str) -> ConstraintError:
        return ConstraintError(f"{_shown(self.pattern)} is no valid regular expression: {reason}.")

    def _refused(self, what: str) -> ConstraintError:
        return ConstraintError(
            f"The regular expression {_shown(self.pattern)} has {what} at character {self.position + 1}, which a "
            "reply can't be held to. Write it without."
        )

    def _next_is(self, text: str) -> bool:
        return self.pattern.startswith(text, self.position)

    def _take(self) -> str:
        if self.position == len(self.pattern):
            raise self._invalid("it ends too early")
        self.position += 1
        return self.pattern[self.position - 1]

    def _alternatives(self) -> Language:
        branches = [self._sequence()]
        while self._next_is("|"):
            self.position += 1
            branches.append(self._sequence())
        return unite(branches)

    def _sequence(self) -> Language:
        parts: list[Language] = []
        while self.position < len(self.pattern) and not self._next_is("|") and not self._next_is(")"):
            parts.append(self._quantified(self._atom()))
        return concatenate(*parts)

    def _quantified(self, atom: Language) -> Language:
        counter = re.compile(r"\*|\+|\?|\{(\d+)\}|\{(\d*),(\d*)\}").match(self.pattern, self.position)
        if counter is None:
            return atom
        if counter[0] == "{,}":
            raise self._refused("the counter {,}, which some read as text,")
        minimum, maximum = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(counter[0], (0, None))
        if counter[1]:
            minimum = maximum = self._count(counter[1])
        elif counter[0].startswith("{"):
            minimum = self._count(counter[2] or "0")
            maximum = self._count(counter[3]) if counter[3] else None
        if maximum is not None and maximum < minimum:
            raise self._invalid(f"the counter {counter[0]} is the wrong way round")
        self.position = counter.end()
        if self._next_is("+"):
            raise self._refused("a possessive quantifier")
        if self._next_is("?"):
            # Lazy or greedy makes a difference to what is captured, not to what matches.
            self.position += 1
        return Repetition(atom, minimum, maximum)

    def _count(self, digits: str) -> int:
        if len(digits) > 9 or int(digits) > MAX_COUNT:
            raise ConstraintError(
                f"The regular expression {_shown(self.pattern)} counts up to {_shown(digits)[1:-1]}; counters go "
                f"up to {MAX_COUNT:,}. Use a smaller one, or * or + instead."
            )
        return int(digits)

    def _atom(self) -> Language:
        character = self._take()
        match character:
            case "^":
                return Anchor.START
            case "$":
                return Anchor.END
            case ".":
                return self.encode(_complement(LINE_ENDS))
            case "(":
                return self._group()
            case "[":
                return self.encode(self._set())
            case "\\":
                return self._escape()
        return self.encode(((ord(character), ord(character)),))

    def _group(self) -> Language:
        if self._next_is("?"):
            if self._next_is("?#"):
                end = self.pattern.find(")", self.position)
                if end < 0:
                    raise self._invalid("it ends in a comment")
                self.position = end + 1
                if self.pattern[self.position : self.position + 1] in ("*", "+", "?", "{"):
                    raise self._refused("a quantifier behind a comment")
                return EMPTY_TEXT
            for prefix, name in _GROUPS_REFUSED.items():
                if self._next_is(prefix):
                    raise self._refused(name)
            opening = re.compile(r"\?:|\?P<\w+>").match(self.pattern, self.position)
            if opening is None:
                raise self._refused("an inline flag or unknown group")
            self.position = opening.end()
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise self._refused(f"more than {MAX_NESTING} groups inside each other")
        language = self._alternatives()
        self.nesting -= 1
        if not self._next_is(")"):
            raise self._invalid("a parenthesis is not closed")
        self.position += 1
        return language

    def _escape(self) -> Language:
        letter = self._take()
        match letter:
            case "A":
                return Anchor.START
            case "Z":
                return Anchor.END
            case "b" | "B":
                raise self._refused("a word boundary")
        if letter in _CLASSES:
            return self.encode(_CLASSES[letter][0])
        if letter.isdigit() and letter != "0":
            raise self._refused("a back-reference")
        point = self._escaped_point(letter)
        return self.encode(((point, point),))

    def _escaped_point(self, letter: str) -> int:
        """The code point of an escaped character, its first letter being read."""
        if letter in _HEX_ESCAPES:
            digits = self.pattern[self.position : self.position + _HEX_ESCAPES[letter]]
            if not re.fullmatch(r"[0-9a-fA-F]+", digits) or len(digits) < _HEX_ESCAPES[letter]:
                raise self._invalid(f"\\{letter} wants {_HEX_ESCAPES[letter]} hexadecimal digits")
            self.position += len(digits)
            if int(digits, 16) > MAX_CODE_POINT:
                raise self._invalid(f"\\{letter}{digits} is no character")
            return int(digits, 16)
        if letter == "0" and self.pattern[self.position : self.position + 1].isdigit():
            raise self._refused("an octal escape")
        if letter in _CONTROL_ESCAPES:
            return _CONTROL_ESCAPES[letter]
        if letter.isascii() and letter.isalnum():
            raise self._refused(f"the escape \\{letter}")
        return ord(letter)

    def _set(self) -> Ranges:
        """The characters of a set, its opening bracket being read."""
        negated = self._next_is("^")
        self.position += negated
        ranges: list[Ranges] = []
        while not self._next_is("]") or not ranges:
            first = self._set_member(negated)
            if isinstance(first, tuple):
                ranges.append(first)
            elif self._next_is("-") and not self._next_is("-]"):
                self.position += 1
                last = self._set_member(negated)
                if isinstance(last, tuple) or last < first:
                    raise self._invalid("a range of characters is the wrong way round or ends in a class")
                ranges.append(((first, last),))
            else:
                ranges.append(((first, first),))
        self.position += 1
        return _complement(_union(*ranges)) if negated else _union(*ranges)

    def _set_member(self, negated: bool) -> int | Ranges:
        """A code point, or the characters of a class escape."""
        character = self._take()
        if character != "\\":
            return ord(character)
        letter = self._take()
        if letter in _CLASSES:
            return _CLASSES[letter][negated]
        if letter == "b":
            return 0x08
        if letter.isdigit() and letter != "0":
            raise self._refused("an octal escape")
        return self._escaped_point(letter)
