"""Values in classes, so that those of different classes differ: how the items of an array are kept apart.

An automaton can't remember an item, but it can remember a class. A text's class is what its bytes come to in a
polynomial modulo the number of classes: of that many pairs about one falls together, and what is counted on at its
end (`item1`, `item2`) does so last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

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
from .minimal import minimised

# How far from the beginning, bytes by the shortest way, a state may be in which a value's class still changes;
# None is any. Where characters are counted, each class counts them for itself up to there; where none are, the
# states of loops are near, and the class hangs on all that is read.
REACHES = (None, 96, 48, 24, 12, 8)

# Odd, so that each byte tells classes apart, and 3 modulo 4, so that in four classes the order of two bytes does.
# Neighbouring integers, tens, hundreds, dates and versions seldom fall together by it.
_FACTOR = 7

# Decimals of so many digits in all are of different doubles, and if they have a fraction, of no integer's.
_DECIMAL_DIGITS = 15

# Bytes that stand for classes behind a value: none is in the text of one, which may be indented.
_MARKS = bytes([*range(0x0A), *range(0x0B, 0x20), 0xFF])

# What is in no string or number: the only values of their text. Arrays and objects may have many texts, and are of
# one class.
_FIRST_BYTES = {b"[": 0, b"{": 0, b"n": 1, b"t": 2, b"f": 3}

# Behind these the class of a text doesn't change any more: escapes, and the first bytes of characters beyond the
# emoji. Each kind of first byte costs a state for every class; so where a language is so large that it counts
# something, and pays for each character, all first bytes of which not all have bytes like those of most are rare.
_RARE = np.zeros(256, np.bool_)
_RARE[[*range(0x20), ord("\\"), *range(0xF1, 0x100)]] = True
_RARE_IN_LARGE = _RARE.copy()
_RARE_IN_LARGE[[0xE0, 0xED, 0xF0]] = True
LARGE = 100


class Values:
    """The values of an array's items; of numbers one text each. They come up again in each try of a schema."""

    def __init__(self, language: Language) -> None:
        """Numbers with an exponent or a fraction that ends in zero are left out. So are decimals of more than 15
        digits. Raises `StateLimitError`."""
        self.dfa = intersection(minimal_dfa(language), _one_text_each())
        self._key = tuple(table.tobytes() for table in (self.dfa.moves, self.dfa.byte_kind, self.dfa.accepting))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Values) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def rare(self) -> npt.NDArray[np.bool_]:
        """`[256]`: the bytes behind which a class doesn't change"""
        return _RARE_IN_LARGE if self.dfa.dead > LARGE else _RARE

    @cached_property
    def distance(self) -> npt.NDArray[np.int64]:
        """`[states]`: the fewest bytes of a string or a number from the start to there, none of them rare; -1
        where none lead."""
        moves = self.dfa.moves[:, np.unique(self.dfa.byte_kind[~self.rare])]
        states = self.dfa.moves[0, self.dfa.byte_kind[list(b'"-0123456789')]]
        found, bytes_read = np.full(len(moves), -1), 0
        while len(states := np.unique(states[(found[states] < 0) & (states != self.dfa.dead)])):
            bytes_read += 1
            found[states] = bytes_read
            states = moves[states].ravel()
        return found

    def within(self, reach: int | None) -> npt.NDArray[np.bool_]:
        """`[states]`: where a text's class still changes."""
        return (self.distance >= 0) & (True if reach is None else self.distance <= reach)


@lru_cache(maxsize=64)
def values_of_language(language: Language) -> Values:
    """Raises `StateLimitError`."""
    return Values(language)


@dataclass(frozen=True)
class Checksum:
    """Which class each of some values is of. Where these are all that an array may hold, equal items are of one
    class, whatever language each of them is read by."""

    values: Values
    reach: int | None
    """one of `REACHES`"""

    def classes(self, language: Language, count: int) -> Classes:
        """Those of them that belong to a language, in `count` classes, a power of two up to 32.

        If there are half as many classes a value's is what it was modulo that. Raises `StateLimitError`.
        """
        return _classes(self, values_of_language(language), count)

    def most_of_class(self, part: Values, count: int) -> int:
        """A class of `part` has hardly more states than this, and mostly half of it and more."""
        if part == self.values:
            return int(part.within(self.reach).sum()) * count + part.dfa.dead
        return part.dfa.dead * (count + 1)

    def size_of_class(self, part: Values, count: int) -> int:
        """About how many it has. Raises `StateLimitError`."""
        return _size_of_class(self, part, count)


@dataclass(frozen=True, eq=False)
class Classes:
    """The values of a language in classes. Values of two classes are never equal.

    - `dfa`: reads them; what it accepts is not told by itself;
    - `ends`: the states in which a value of each class ends.
    """

    dfa: ByteDFA
    ends: tuple[frozenset[int], ...]


@lru_cache(maxsize=64)
def _classes(checksum: Checksum, values: Values, count: int) -> Classes:
    marked = _marked(checksum, count)
    if values != checksum.values:
        marks = OneByte(byte_set(_MARKS[:count]))
        marked = intersection(minimal_dfa(concatenate(embed(values.dfa), marks)), marked)
    moves = marked.moves[:, marked.byte_kind]
    marks_read = list(_MARKS[:count])
    ends = tuple(frozenset(np.flatnonzero(moves[:, each] != marked.dead).tolist()) for each in marks_read)
    moves[:, marks_read] = marked.dead
    return Classes(ByteDFA.of(moves, np.arange(256), np.zeros_like(marked.accepting)), ends)


@lru_cache(maxsize=256)
def _size_of_class(checksum: Checksum, part: Values, count: int) -> int:
    classes = _classes(checksum, part, count)
    sizes = []
    for ends in classes.ends[:2]:
        accepting = np.zeros(len(classes.dfa.accepting), np.bool_)
        accepting[list(ends)] = True
        sizes.append(minimised(replace(classes.dfa, accepting=accepting)).dead)
    return max(sizes)


@lru_cache(maxsize=64)
def _marked(checksum: Checksum, count: int) -> ByteDFA:
    """The values, each followed by the mark of its class."""
    dfa, changes = checksum.values.dfa, checksum.values.within(checksum.reach)
    # States come `count` at a time, one for each class: those in which it changes, and then all as they are where
    # it does so no more. Behind them the start, the end and the dead one.
    nth = np.full(len(changes), -1)
    nth[changes] = np.arange(changes.sum())
    settled = int(changes.sum()) * count
    start = settled + len(changes) * count
    end, dead = start + 1, start + 2
    moves = np.full((start + 3, 256), dead, np.int32)
    numbers, read = np.arange(count)[:, None], np.arange(256)
    following = (_FACTOR * numbers + read) % count  # [count, 256]
    targets = dfa.moves[:, dfa.byte_kind]
    goes_on = changes[targets] & ~checksum.values.rare
    for state in range(dfa.dead):
        to = targets[state]
        alive = to != dfa.dead
        same = np.where(alive, settled + to * count + numbers, dead)
        first = settled + state * count
        moves[first : first + count] = same
        if changes[state]:
            then = np.where(goes_on[state], nth[to] * count + following, settled + to * count + following)
            first = int(nth[state]) * count
            moves[first : first + count] = np.where(alive, then, dead)
    for first, rows in ((0, np.flatnonzero(changes)), (settled, np.arange(len(changes)))):
        accepting = np.flatnonzero(dfa.accepting[rows])
        for number in range(count):
            moves[first + accepting * count + number, _MARKS[number]] = end
    # The first byte says what kind of value it is.
    for byte in np.flatnonzero(targets[0] != dfa.dead).tolist():
        to = int(targets[0, byte])
        of_kind = _FIRST_BYTES.get(bytes([byte]))
        if of_kind is not None or not changes[to]:
            moves[start, byte] = settled + to * count + (of_kind or 0) % count
        else:
            moves[start, byte] = nth[to] * count + (byte % count if chr(byte).isdigit() else 0)
    return _minimal_from(start, moves, end)


def _minimal_from(start: int, moves: npt.NDArray[np.int32], end: int) -> ByteDFA:
    """The minimal automaton of what leads from one state to another, by `[states, 256]`; the last one is dead."""
    reached = np.zeros(len(moves), np.bool_)
    states = np.array([start])
    while len(states):
        reached[states] = True
        states = np.unique(moves[states])
        states = states[~reached[states]]
    dead = len(moves) - 1
    order = np.concatenate([[start], np.setdiff1d(np.flatnonzero(reached), [start, dead]), [dead]])
    numbers = np.zeros(len(moves), np.int32)
    numbers[order] = np.arange(len(order))
    return minimised(ByteDFA.of(numbers[moves[order]], np.arange(256), order == end))


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
