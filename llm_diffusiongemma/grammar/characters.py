"""Sets of characters, and the bytes that stand for one out of a set."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

from .language import Language, OneByte, byte_range, concatenate, embed, minimal_dfa, unite

MAX_CODE_POINT = 0x10FFFF

# Sorted and disjoint ranges of code points, both ends included; no two of them touch.
Ranges = tuple[tuple[int, int], ...]

# The bytes of some characters: for each byte in turn the first and the last one that it may be.
ByteRanges = tuple[tuple[int, int], ...]

EVERY_CHARACTER: Ranges = ((0, MAX_CODE_POINT),)
LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))


def union(*sets: Iterable[tuple[int, int]]) -> Ranges:
    """The characters in any of the sets."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(itertools.chain.from_iterable(sets)):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def all_but(*sets: Ranges) -> Ranges:
    """The characters in none of the sets."""
    edges = [-1, *itertools.chain.from_iterable(union(*sets)), MAX_CODE_POINT + 1]
    gaps = [(edges[i] + 1, edges[i + 1] - 1) for i in range(0, len(edges), 2)]
    return tuple((first, last) for first, last in gaps if first <= last)


def without(ranges: Ranges, removed: Ranges) -> Ranges:
    """The characters in `ranges` that aren't in `removed`."""
    return all_but(all_but(ranges), removed)


def contains(ranges: Ranges, point: int) -> bool:
    """Whether a code point is in the set."""
    return any(first <= point <= last for first, last in ranges)


def ranges_of(points: Iterable[int]) -> Ranges:
    """The set of these code points."""
    return union(tuple((point, point) for point in sorted(points)))


DIGITS: Ranges = ((ord("0"), ord("9")),)
WORD: Ranges = ((ord("0"), ord("9")), (ord("A"), ord("Z")), (ord("_"), ord("_")), (ord("a"), ord("z")))
BEYOND_ASCII: Ranges = ((0x80, MAX_CODE_POINT),)
ASCII_SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
# ECMA 262's WhiteSpace and LineTerminator.
ECMA_SPACE: Ranges = union(
    ASCII_SPACE,
    ((0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F)),
    ((0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
# What Python takes for one as well.
WHITE_SPACE: Ranges = union(ECMA_SPACE, ((0x1C, 0x1F), (0x85, 0x85)))


@cache
def _categories() -> dict[str, Ranges]:
    """All characters by their general category, such as `Lu`."""
    found: dict[str, list[tuple[int, int]]] = {}
    first = 0
    names = map(unicodedata.category, map(chr, range(MAX_CODE_POINT + 1)))
    for name, characters in itertools.groupby(names):
        last = first + sum(1 for _ in characters) - 1
        found.setdefault(name, []).append((first, last))
        first = last + 1
    return {name: tuple(ranges) for name, ranges in found.items()}


# Unicode's PropertyValueAliases of General_Category.
_LONG_NAMES = {
    "Cased_Letter": "LC",
    "Close_Punctuation": "Pe",
    "Connector_Punctuation": "Pc",
    "Control": "Cc",
    "Currency_Symbol": "Sc",
    "Dash_Punctuation": "Pd",
    "Decimal_Number": "Nd",
    "Enclosing_Mark": "Me",
    "Final_Punctuation": "Pf",
    "Format": "Cf",
    "Initial_Punctuation": "Pi",
    "Letter": "L",
    "Letter_Number": "Nl",
    "Line_Separator": "Zl",
    "Lowercase_Letter": "Ll",
    "Mark": "M",
    "Combining_Mark": "M",
    "Math_Symbol": "Sm",
    "Modifier_Letter": "Lm",
    "Modifier_Symbol": "Sk",
    "Nonspacing_Mark": "Mn",
    "Number": "N",
    "Open_Punctuation": "Ps",
    "Other": "C",
    "Other_Letter": "Lo",
    "Other_Number": "No",
    "Other_Punctuation": "Po",
    "Other_Symbol": "So",
    "Paragraph_Separator": "Zp",
    "Private_Use": "Co",
    "Punctuation": "P",
    "Separator": "Z",
    "Space_Separator": "Zs",
    "Spacing_Mark": "Mc",
    "Surrogate": "Cs",
    "Symbol": "S",
    "Titlecase_Letter": "Lt",
    "Unassigned": "Cn",
    "Uppercase_Letter": "Lu",
    "cntrl": "Cc",
    "digit": "Nd",
    "punct": "P",
}
_OF_CATEGORIES = {"LC": ("Lu", "Ll", "Lt")}


def property_ranges(name: str) -> Ranges | None:
    """The characters of `\\p{name}`: a general category, or what is made of them. None for any other property.

    As this Python's Unicode has them.
    """
    prefix, equals, value = name.rpartition("=")
    if equals and prefix not in ("gc", "General_Category"):
        return None
    if not equals and name in ("Any", "ASCII", "Assigned"):
        return {"Any": EVERY_CHARACTER, "ASCII": all_but(BEYOND_ASCII)}.get(name) or all_but(_categories()["Cn"])
    value = _LONG_NAMES.get(value, value)
    wanted = _OF_CATEGORIES.get(value, (value,))
    found = [ranges for category, ranges in _categories().items() if category in wanted or category[0] in wanted]
    return union(*found) if found else None


# Of the planes of Unicode only the first two have letters with case.
_END_OF_CASE = 0x20000


@cache
def _case_variants() -> dict[int, tuple[int, ...]]:
    """The characters that have variants, with all of them and themselves: those of the same simple folding."""
    alike: dict[int, list[int]] = {}
    for point in range(_END_OF_CASE):
        alike.setdefault(_folded(chr(point)), []).append(point)
    return {point: tuple(points) for points in alike.values() if len(points) > 1 for point in points}


def _folded(character: str) -> int:
    """Unicode's simple case folding, of which Python has the full one only."""
    for folded in (character.casefold(), character.lower()):
        if len(folded) == 1:
            return ord(folded)
    return ord(character)


def case_closed(ranges: Ranges) -> Ranges:
    """The characters that differ from one of the set by their case at most."""
    variants = _case_variants()
    added = {variant for point, points in variants.items() if contains(ranges, point) for variant in points}
    return union(ranges, ranges_of(added))


@dataclass(frozen=True)
class Encoding:
    """How a character is written in bytes."""

    sequences: Callable[[Ranges], list[ByteRanges]]
    """The bytes of the characters of a set, cut where the bytes' ranges are independent of each other. No two of
    the sequences have a text in common, and none is the beginning of another."""

    def __call__(self, ranges: Ranges) -> Language:
        """One character out of the ranges."""
        return _one_character(self, ranges)


@lru_cache(maxsize=512)
def _one_character(encoding: Encoding, ranges: Ranges) -> Language:
    sequences = encoding.sequences(ranges)
    parts = [concatenate(*(OneByte(byte_range(*pair)) for pair in sequence)) for sequence in sequences]
    if all(len(sequence) == 1 for sequence in sequences):
        return unite([OneByte(byte_range(*sequence[0])) for sequence in sequences])
    # Determinised once here instead of at each place where it stands.
    return embed(minimal_dfa(unite(parts)))


def _utf8(ranges: Ranges) -> list[ByteRanges]:
    """Surrogates have no UTF-8."""
    sequences: list[ByteRanges] = []
    for first, last in ranges:
        for low, high in ((first, min(last, 0xD7FF)), (max(first, 0xE000), last)):
            if low <= high:
                sequences += _utf8_of_range(low, high)
    return sequences


def _utf8_of_range(first: int, last: int) -> list[ByteRanges]:
    for longest in (0x7F, 0x7FF, 0xFFFF):
        if first <= longest < last:
            return _utf8_of_range(first, longest) + _utf8_of_range(longest + 1, last)
    for bits in (6, 12, 18):
        rest = (1 << bits) - 1
        if first > 0x7F and first >> bits != last >> bits:
            if first & rest:
                return _utf8_of_range(first, first | rest) + _utf8_of_range((first | rest) + 1, last)
            if last & rest != rest:
                return _utf8_of_range(first, (last & ~rest) - 1) + _utf8_of_range(last & ~rest, last)
    return [tuple(zip(chr(first).encode(), chr(last).encode(), strict=True))]


_BACKSLASH = (0x5C, 0x5C)
_JSON_ESCAPES = {0x22: '"', 0x5C: "\\", 0x08: "b", 0x0C: "f", 0x0A: "n", 0x0D: "r", 0x09: "t"}
_ESCAPED_IN_JSON: Ranges = ((0, 0x1F), (0x22, 0x22), _BACKSLASH)


def _json(ranges: Ranges) -> list[ByteRanges]:
    escaped = [ord(letter) for point, letter in _JSON_ESCAPES.items() if contains(ranges, point)]
    return [*_utf8(without(ranges, _ESCAPED_IN_JSON)), *((_BACKSLASH, (letter, letter)) for letter in escaped)]


utf8 = Encoding(_utf8)
"""UTF-8, in which surrogates have no form."""

json_string_character = Encoding(_json)
"""As a character stands between the quotes of a JSON string.

It has one form: itself, or a backslash and a letter where it must be escaped. That leaves out the control
characters that have no such letter.
"""
