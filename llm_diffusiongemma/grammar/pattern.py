"""Regular expressions and choices → regular language.

The regular expressions of a schema are ECMA 262's; those of `-o regex` mean what Python's `re` has in common with
them (expression.py). Either way the automaton of characters (matching.py) is the truth: a language is made of it,
and a text is judged by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ..errors import ConstraintError
from .characters import ByteRanges, Encoding, Ranges, union, utf8
from .dfa import ByteDFA, Mask, Row
from .expression import Dialect, InvalidExpressionError, parse, shown
from .language import MAX_STATES, Language, Literal, StateLimitError, byte_range, embed, minimal_dfa, unite
from .matching import Matcher
from .minimal import minimal

MAX_CHOICES_LENGTH = 100_000

# States of an automaton over bytes before it is minimal.
MAX_BYTE_STATES = 2 * MAX_STATES


def regex_language(pattern: str) -> ByteDFA:
    """All UTF-8 texts that the whole pattern matches, to Python's `re` as well as by ECMA 262.

    Raises `ConstraintError`.
    """
    try:
        dfa = _byte_dfa(Matcher(parse(pattern, Dialect.COMMON)), utf8)
    except InvalidExpressionError as error:
        raise ConstraintError(str(error)) from None
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


@lru_cache(maxsize=512)
def _finder(pattern: str) -> Matcher:
    return Matcher(parse(pattern), anywhere=True)


def pattern_language(pattern: str, encoding: Encoding) -> Language:
    """What a pattern matches as a whole, by ECMA 262, each character in its bytes.

    Raises `ConstraintError`, and `StateLimitError`.
    """
    return embed(_byte_dfa(Matcher(parse(pattern)), encoding))


def search_language(pattern: str, encoding: Encoding) -> Language:
    """All texts in which the pattern is found, by ECMA 262. Raises `ConstraintError`, and `StateLimitError`."""
    return embed(_byte_dfa(Matcher(parse(pattern), anywhere=True), encoding))


def _byte_dfa(matcher: Matcher, encoding: Encoding) -> ByteDFA:
    """The automaton over the bytes of the characters that a matcher reads."""
    by_class, accepting = matcher.explore(MAX_STATES)
    ranges = matcher.classes.ranges()
    decoders: dict[tuple[int, ...], _Decoder] = {}
    # A state where a character begins has the matcher's number; those inside of one come behind them.
    rows: list[Row] = []
    inside: list[Row] = []
    known: dict[Row, int] = {}
    for targets_of_class in by_class:
        targets = list(dict.fromkeys(targets_of_class.values()))
        labels = {target: label for label, target in enumerate(targets)}
        key = tuple(labels.get(targets_of_class.get(number, -1), -1) for number in range(len(ranges)))
        if key not in decoders:
            decoders[key] = _Decoder(ranges, key, encoding)
        states: list[int] = []
        for node in decoders[key].nodes:
            row = tuple((mask, states[to] if to >= 0 else targets[~to]) for mask, to in node)
            if len(states) == len(decoders[key].nodes) - 1:
                rows.append(row)
                break
            states.append(known.setdefault(row, len(by_class) + len(inside)))
            if states[-1] == len(by_class) + len(inside):
                inside.append(row)
        if len(inside) > MAX_BYTE_STATES:
            raise StateLimitError
    dfa = minimal([*rows, *inside], [*accepting, *[False] * len(inside)])
    if dfa.dead > MAX_STATES:
        raise StateLimitError
    return dfa


class _Decoder:
    """Which of several sets a character belongs to, read byte by byte.

    `nodes` say where bytes lead: to another node, or behind the character to ~label. The last one is where a
    character begins; none leads to one behind it.
    """

    def __init__(self, ranges: Sequence[Ranges], labels: Sequence[int], encoding: Encoding) -> None:
        by_label: dict[int, list[tuple[int, int]]] = {}
        for label, each in zip(labels, ranges, strict=True):
            if label >= 0:
                by_label.setdefault(label, []).extend(each)
        self.nodes: list[Row] = []
        # By what is left of the sequences, and by the nodes themselves.
        self.known: dict[tuple[tuple[ByteRanges, int], ...], int] = {}
        self.numbers: dict[Row, int] = {}
        sequences = [
            (sequence, label) for label, each in by_label.items() for sequence in encoding.sequences(union(each))
        ]
        self.nodes.append(self._node(sequences))

    def _node(self, sequences: Sequence[tuple[ByteRanges, int]]) -> Row:
        changes: dict[int, tuple[set[int], set[int]]] = {}
        for place, (((first, last), *_), _) in enumerate(sequences):
            changes.setdefault(first, (set(), set()))[0].add(place)
            changes.setdefault(last + 1, (set(), set()))[1].add(place)
        masks: dict[int, Mask] = {}
        here: set[int] = set()
        since = 0
        for byte in sorted(changes):
            if here:
                target = self._target(tuple((sequences[at][0][1:], sequences[at][1]) for at in sorted(here)))
                masks[target] = masks.get(target, 0) | byte_range(since, byte - 1)
            begin, end = changes[byte]
            here = (here - end) | begin
            since = byte
        return tuple((mask, target) for target, mask in masks.items())

    def _target(self, rest: tuple[tuple[ByteRanges, int], ...]) -> int:
        if not rest[0][0]:
            return ~rest[0][1]
        if rest not in self.known:
            node = self._node(rest)
            self.known[rest] = self.numbers.setdefault(node, len(self.nodes))
            if self.known[rest] == len(self.nodes):
                self.nodes.append(node)
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
