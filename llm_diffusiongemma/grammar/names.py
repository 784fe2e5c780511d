"""The names of properties that a schema doesn't list, in regions that it treats alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import ConstraintError
from . import scalars
from .dfa import ByteDFA
from .language import Literal, difference, intersection, minimal_dfa, unite
from .places import Place, refused

# Each pattern splits each region in two.
MAX_REGIONS = 64


@dataclass(frozen=True, eq=False)
class Region:
    """The names that match the same patterns."""

    matched: frozenset[str]
    dfa: ByteDFA
    """of the names as JSON strings, which have one text each"""


def regions(names: ByteDFA, patterns: Collection[str], listed: Collection[str], place: Place) -> Sequence[Region]:
    """All names but the listed ones, by which of the patterns are found in them.

    Raises `ConstraintError` for a pattern that can't be read or too many regions, and `StateLimitError`.
    """
    for pattern in sorted(patterns):
        _search(pattern, place)
    tables = names.moves.tobytes(), names.byte_kind.tobytes(), names.accepting.tobytes()
    found = _regions(_of_tables(*tables), frozenset(patterns), frozenset(listed))
    if found is None:
        raise refused("patternProperties", "its patterns overlap in too many ways", place)
    return found


@lru_cache(maxsize=64)
def _of_tables(moves: bytes, byte_kind: bytes, accepting: bytes) -> ByteDFA:
    """The automaton of these tables, which is the same one for the same names."""
    accepts = np.frombuffer(accepting, np.bool_)
    return ByteDFA(
        np.frombuffer(moves, np.int32).reshape(len(accepts), -1), np.frombuffer(byte_kind, np.int32), accepts
    )


@lru_cache(maxsize=64)
def _regions(names: ByteDFA, patterns: frozenset[str], listed: frozenset[str]) -> tuple[Region, ...] | None:
    """None if there are too many."""
    if listed:
        names = difference(
            names, minimal_dfa(unite([Literal(scalars.json_text(name)) for name in sorted(listed)]))
        )
    if patterns:
        # What an enum has besides, a control character, is in no pattern's automaton, and may match nevertheless.
        names = intersection(names, every_name())
    found = [Region(frozenset(), names)] if names.dead else []
    for pattern in sorted(patterns):
        matching = scalars.containing(pattern)
        found = [part for region in found for part in _split(region, pattern, matching)]
        if len(found) > MAX_REGIONS:
            return None
    return tuple(found)


def _split(region: Region, pattern: str, matching: ByteDFA) -> list[Region]:
    """A region by whether a pattern is found in its names: one part or two."""
    both = intersection(region.dfa, matching)
    if both.dead == 0:
        return [region]
    parts = [Region(region.matched, difference(region.dfa, matching)), Region(region.matched | {pattern}, both)]
    return [part for part in parts if part.dfa.dead]


@lru_cache(maxsize=1)
def every_name() -> ByteDFA:
    """The names of which nothing is asked."""
    return minimal_dfa(scalars.string())


def _search(pattern: str, place: Place) -> ByteDFA:
    """The strings in which a pattern is found."""
    try:
        return scalars.containing(pattern)
    except ConstraintError as error:
        raise ConstraintError(
            f"The keyword patternProperties at {place.path} can't be guaranteed: {error}"
        ) from None


@dataclass(frozen=True, eq=False)
class Summed:
    """Names with a checksum: what their bytes add up to, by a modulus.

    Names with different sums differ, and a counter of `modulus` states is all it takes to know.
    """

    dfa: ByteDFA
    """Not minimal: its states are those of the names' automaton once for each sum, and the dead one."""
    ends: tuple[frozenset[int], ...]
    """Where a name may end, by its checksum."""


def summed(names: ByteDFA, modulus: int) -> Summed:
    """The names and their checksums."""
    states, sums = np.divmod(np.arange(names.dead * modulus), modulus)
    byte = np.arange(256)
    targets = names.moves[states][:, names.byte_kind].astype(np.intp)
    moves = targets * modulus + (sums[:, None] + byte) % modulus
    moves[targets == names.dead] = len(states)
    moves = np.concatenate([moves, np.full((1, 256), len(states))]).astype(np.int32)
    accepting = np.append(names.accepting[states], False)
    ends = tuple(frozenset(np.flatnonzero(accepting[:-1] & (sums == each)).tolist()) for each in range(modulus))
    return Summed(ByteDFA.of(moves, byte, accepting), ends)
