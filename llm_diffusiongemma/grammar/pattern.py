"""Regular expressions and choices → regular language.

The regular expressions of a schema are ECMA 262's; those of `-o regex` mean what Python's `re` has in common with
them (expression.py). Either way the automaton of characters (matching.py) is the truth: a language is made of it,
and a text is judged by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..errors import ConstraintError
from .characters import ByteRanges, Encoding, Ranges, union, utf8
from .dfa import ByteDFA
from .expression import Dialect, InvalidExpressionError, parse, shown
from .language import MAX_STATES, Language, Literal, StateLimitError, embed, minimal, minimal_dfa, unite
from .matching import Matcher

MAX_CHOICES_LENGTH = 100_000

# States of an automaton over bytes before it is minimal.
MAX_BYTE_STATES = 2 * MAX_STATES


def regex_language(pattern: str) -> ByteDFA:
    """All UTF-8 texts that the whole pattern matches, to Python's `re` as well as by ECMA 262.

    Raises `ConstraintError`.
    """
    try:
        dfa = _byte_dfa(Matcher(parse(pattern, Dialect.COMMON)), utf8)
    except StateLimitError:
        raise _too_large(pattern) from None
    if dfa.dead == 0:
        raise ConstraintError(f"No text matches the regular expression {shown(pattern)}.")
    return dfa


def _too_large(pattern: str) -> ConstraintError:
    return ConstraintError(
        f"The regular expression {shown(pattern)} needs an automaton of more than {MAX_STATES:,} states. "
        "Use smaller counters, or fewer of them."
    )


def check_pattern(pattern: str) -> None:
    """Raises `ConstraintError` for what is no regular expression. One that can't be guaranteed is one."""
    try:
        parse(pattern)
    except InvalidExpressionError:
        raise
    except ConstraintError:
        pass


def is_found(pattern: str, text: str) -> bool:
    """Whether a text has what the pattern matches in it, by ECMA 262.

    Raises `ConstraintError` for a pattern that can't be read, or takes too long.
    """
    try:
        return _finder(pattern).matches(text)
    except StateLimitError:
        raise _too_large(pattern) from None


@lru_cache(maxsize=128)
def _finder(pattern: str) -> Matcher:
    return Matcher(parse(pattern), anywhere=True)


def pattern_language(pattern: str, encoding: Encoding) -> Language:
    """What a pattern matches as a whole, by ECMA 262, each character in its bytes.

    Raises `ConstraintError`, and `StateLimitError`.
    """
    return embed(_byte_dfa(Matcher(parse(pattern)), encoding))


def search_language(pattern: str, encoding: Encoding) -> Language:
    """All texts in which the pattern is found, by ECMA 262. Raises `ConstraintError`, and `StateLimitError`."""
    return embed(_byte_dfa(_finder(pattern), encoding))


def _byte_dfa(matcher: Matcher, encoding: Encoding) -> ByteDFA:
    """The automaton over the bytes of the characters that a matcher reads."""
    rows, accepting = matcher.explore(MAX_STATES)
    ranges = matcher.classes.ranges()
    decoders: dict[tuple[int, ...], _Decoder] = {}
    # Of each state: its decoder, and the states behind it.
    decoder_of: list[_Decoder] = []
    targets_of: list[list[int]] = []
    first: list[int] = []
    count = 0
    for row in rows:
        targets = list(dict.fromkeys(row.values()))
        labels = {target: label for label, target in enumerate(targets)}
        key = tuple(labels[row[number]] if number in row else -1 for number in range(len(ranges)))
        if key not in decoders:
            decoders[key] = _Decoder(ranges, key, encoding)
        decoder_of.append(decoders[key])
        targets_of.append(targets)
        first.append(count)
        count += len(decoders[key].nodes)
        if count > MAX_BYTE_STATES:
            raise StateLimitError
    every_byte = np.concatenate([np.array(decoder.nodes) for decoder in decoders.values()])
    _, representative, byte_class = np.unique(every_byte, axis=1, return_index=True, return_inverse=True)
    tables = {id(decoder): np.array(decoder.nodes)[:, representative] for decoder in decoders.values()}
    blocks = [np.full((1, len(representative)), count)]
    accepts = np.zeros(count + 1, np.bool_)
    for state in reversed(range(len(rows))):
        table = tables[id(decoder_of[state])]
        ends = np.array([first[target] for target in targets_of[state]] + [count])
        # A node of its own, the root of another state's, or the dead state.
        blocks.append(
            np.where((table >= 0) & (table < _LEAF), first[state] + table, ends[np.maximum(table - _LEAF, -1)])
        )
        accepts[first[state]] = accepting[state]
    moves = np.concatenate(blocks[::-1]).astype(np.int32)
    dfa = minimal(moves, byte_class.reshape(-1), accepts)
    if dfa.dead > MAX_STATES:
        raise StateLimitError
    return dfa


# Among the nodes of a decoder: where no character is any more, and where one has been read, by its label.
_NO_CHARACTER = -1
_LEAF = 1 << 20


class _Decoder:
    """Which of several sets a character belongs to, read byte by byte.

    `nodes` say of each of the 256 bytes where it leads. The first one is where a character begins.
    """

    def __init__(self, ranges: Sequence[Ranges], labels: Sequence[int], encoding: Encoding) -> None:
        by_label: dict[int, list[tuple[int, int]]] = {}
        for label, each in zip(labels, ranges, strict=True):
            if label >= 0:
                by_label.setdefault(label, []).extend(each)
        self.nodes: list[tuple[int, ...]] = [()]
        self.known: dict[tuple[object, ...], int] = {}
        self.nodes[0] = self._table(
            [(sequence, label) for label, each in by_label.items() for sequence in encoding.sequences(union(each))]
        )

    def _table(self, sequences: Sequence[tuple[ByteRanges, int]]) -> tuple[int, ...]:
        changes: dict[int, tuple[set[int], set[int]]] = {}
        for place, (((first, last), *_), _) in enumerate(sequences):
            changes.setdefault(first, (set(), set()))[0].add(place)
            changes.setdefault(last + 1, (set(), set()))[1].add(place)
        table: list[int] = []
        here: set[int] = set()
        target = _NO_CHARACTER
        for byte in sorted(changes):
            table += [target] * (byte - len(table))
            begin, end = changes[byte]
            here = (here - end) | begin
            target = self._target(tuple((sequences[place][0][1:], sequences[place][1]) for place in sorted(here)))
        return (*table, *[_NO_CHARACTER] * (256 - len(table)))

    def _target(self, rest: tuple[tuple[ByteRanges, int], ...]) -> int:
        if not rest:
            return _NO_CHARACTER
        if not rest[0][0]:
            return _LEAF + rest[0][1]
        if rest not in self.known:
            table = self._table(rest)
            if table not in self.known:
                self.known[table] = len(self.nodes)
                self.nodes.append(table)
            self.known[rest] = self.known[table]
        return self.known[rest]


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
            raise ConstraintError(f"The choice {shown(choice)} is there twice. Leave one out.")
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
