"""Values in classes, so that those of different classes differ: how the items of an array are kept apart.

An automaton can't remember an item, but it can remember a class. A text's class is what its bytes come to in a
polynomial modulo the number of classes: of that many pairs about one falls together, and what is counted on at its
end (`item1`, `item2`) does so last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .dfa import ByteDFA
from .language import (
    ALL_BYTES,
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

# The class of a number hangs on this many of its first characters, and so does that of a string whose characters
# are counted: what is counted is counted beside every class.
NUMERAL_LENGTH = 5
COUNTED_LENGTH = 8

# Decimals of so many digits in all are of different doubles, and if they have a fraction, of no integer's.
_DECIMAL_DIGITS = 15

# A language of so many states counts something.
LARGE = 100

_FACTOR = 5

# Bytes that stand for classes behind a value: none is in the text of one, which may be indented.
_MARKS = bytes([*range(0x0A), *range(0x0B, 0x20), 0xFF])

# What is in no string or number: the only values of their text. Arrays and objects may have many texts, and are of
# one class.
_FIRST_BYTES = {b"[": 0, b"{": 0, b"n": 1, b"t": 2, b"f": 3}


class _Values:
    """An automaton that can be looked up: equal languages come up again in each try of a schema."""

    def __init__(self, dfa: ByteDFA) -> None:
        self.dfa = dfa
        self.key = tuple(table.tobytes() for table in (dfa.moves, dfa.byte_kind, dfa.accepting))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Values) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True, eq=False)
class Classes:
    """The values of a language in classes. Values of two classes are never equal.

    - `dfa`: reads them; what it accepts is not told by itself;
    - `ends`: the states in which a value of each class ends.
    """

    dfa: ByteDFA
    ends: tuple[frozenset[int], ...]


def classes_of(language: Language, count: int) -> Classes:
    """The values of a language in `count` classes, a power of two up to 32.

    Numbers with an exponent or a fraction that ends in zero are left out. So are decimals of more than 15 digits.
    Raises `StateLimitError`.
    """
    return _classes(values_of_language(language), count)


@lru_cache(maxsize=64)
def _size_of_class(values: _Values, count: int) -> int:
    classes = _classes(values, count)
    sizes = []
    for ends in classes.ends[:2]:
        accepting = np.zeros(len(classes.dfa.accepting), np.bool_)
        accepting[list(ends)] = True
        sizes.append(intersection(replace(classes.dfa, accepting=accepting), values.dfa).dead)
    return max(sizes)


def size_of_class(language: Language, count: int) -> int:
    """About how many states a class of them has."""
    return _size_of_class(values_of_language(language), count)


def least_size(language: Language) -> int:
    """No class of them is much smaller than this."""
    return values_of_language(language).dfa.dead


@lru_cache(maxsize=64)
def values_of_language(language: Language) -> _Values:
    """What is equal for equal languages, where of each value one text is left."""
    return _Values(intersection(minimal_dfa(language), _one_text_each()))


@lru_cache(maxsize=64)
def _classes(values: _Values, count: int) -> Classes:
    marked = _marked(values, count, None)
    if values.dfa.dead > LARGE:
        marked = _marked(values, count, COUNTED_LENGTH)
    else:
        shorter = _marked(values, count, COUNTED_LENGTH)
        marked = marked if marked.dead <= shorter.dead else shorter
    moves = marked.moves[:, marked.byte_kind]
    marks = list(_MARKS[:count])
    ends = tuple(frozenset(np.flatnonzero(moves[:, each] != marked.dead).tolist()) for each in marks)
    moves[:, marks] = marked.dead
    return Classes(ByteDFA.of(moves, np.arange(256), np.zeros_like(marked.accepting)), ends)


def _marked(values: _Values, count: int, longest: int | None) -> ByteDFA:
    """The values, each followed by the mark of its class."""
    anything = concatenate(embed(values.dfa), OneByte(byte_set(_MARKS[:count])))
    return intersection(minimal_dfa(anything), _texts_and_classes(count, longest))


@lru_cache(maxsize=1)
def _one_text_each() -> ByteDFA:
    """All texts but those of numbers that have another one as well."""
    digit, anything = OneByte(byte_range(ord("0"), ord("9"))), Repetition(OneByte(ALL_BYTES), 0, None)
    others = OneByte(ALL_BYTES & ~byte_set(b"-0123456789"))
    nonzero = OneByte(byte_range(ord("1"), ord("9")))
    positive = concatenate(nonzero, Repetition(digit, 0, None))
    sign, point = optional(Literal(b"-")), Literal(b".")
    decimal = concatenate(sign, unite([Literal(b"0"), positive]), point, Repetition(digit, 0, None), nonzero)
    short = concatenate(sign, Repetition(OneByte(byte_set(b".0123456789")), 1, _DECIMAL_DIGITS + 1))
    return minimal_dfa(
        unite(
            [
                concatenate(others, anything),
                Literal(b"0"),
                concatenate(sign, positive),
                embed(intersection(minimal_dfa(decimal), minimal_dfa(short))),
            ]
        )
    )


@lru_cache(maxsize=16)
def _texts_and_classes(count: int, longest: int | None) -> ByteDFA:
    """All texts with the marks of their classes, which hang on `longest` characters of a string (None: on all).

    Not minimal.
    """
    moves, ends = _polynomial(count, longest)
    dead = len(moves) - 1
    moves = np.concatenate([moves, np.full((1, 256), dead, np.int32)])
    for end in ends:
        for number in range(count):
            moves[end + number, list(_MARKS)] = dead
            moves[end + number, _MARKS[number]] = dead + 1
    # The dead state comes last.
    order = np.arange(dead + 2)
    order[[dead, dead + 1]] = dead + 1, dead
    moves[[dead, dead + 1]] = moves[[dead + 1, dead]]
    accepting = np.zeros(len(moves), np.bool_)
    accepting[dead] = True
    return ByteDFA.of(order[moves].astype(np.int32), np.arange(256), accepting)


@lru_cache(maxsize=16)
def _polynomial(count: int, longest: int | None) -> tuple[npt.NDArray[np.int32], list[int]]:
    """Moves `[states, 256]`, and where a text of class 0 can end; those of the others follow one by one."""
    # By class: after so many characters of a string, or within one, two and one bytes before its end, after so
    # many of a number, and where the rest makes no difference. State 0 is the start, the last one is dead.
    rounds = longest or 1
    starts = iter(range(1, 1 << 30, count))
    string, two, one = ([next(starts) for _ in range(rounds)] for _ in range(3))
    numeral = [next(starts) for _ in range(NUMERAL_LENGTH)]
    settled = next(starts)
    dead = settled + count
    moves = np.full((dead + 1, 256), dead, np.int32)

    def read(source: int, target: int, read_bytes: Iterable[int]) -> None:
        for byte in read_bytes:
            for number in range(count):
                moves[source + number, byte] = target + (_FACTOR * number + byte) % count

    for index, source in enumerate(string):
        following = string[0] if longest is None else [*string, settled][index + 1]
        read(source, settled, range(256))
        read(source, following, set(range(0x20, 0x80)) - set(b'"\\'))
        # The first bytes of all characters whose other bytes are just any.
        read(source, one[index], range(0xC2, 0xE0))
        read(source, two[index], {*range(0xE1, 0xF0)} - {0xED})
        read(two[index], one[index], range(0x80, 0xC0))
        read(one[index], following, range(0x80, 0xC0))
    for source, target in zip(numeral, [*numeral[1:], settled], strict=True):
        read(source, target, b".0123456789")
    for number in range(count):
        moves[settled + number] = settled + number
    moves[0, ord('"')] = string[0]
    moves[0, ord("-")] = numeral[0]
    for byte in b"0123456789":
        moves[0, byte] = moves[numeral[0], byte]
    for first, number in _FIRST_BYTES.items():
        moves[0, ord(first)] = settled + number % count
    return moves, [*numeral[1:], settled]
