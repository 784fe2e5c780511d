"""What somebody who watches a reply is told of it by a server, as JSON. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import chain
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..chat.texts import is_text
from ..view.records import ACCEPTED, CALL, CONTROL, NOISE, SETTLED, TEXT, THOUGHT, Reading, Snapshot

READING, SNAPSHOT = "reading", "snapshot"

# Of one record. A canvas of 256 with five candidates for each position has 5,000 values, and 10,000 characters.
MAX_VALUES = 100_000
MAX_CHARACTERS = 100_000
# Of one position. What is shown of a text is kept, in case that comes again.
MAX_CANDIDATES = 100
MAX_PIECE_CHARACTERS = 1000
# Of a canvas, which is looked at some ten times a second.
MAX_POSITIONS = 4096
# Steps, tokens, seconds and nats: none comes near, and whatever they are shown or kept with can hold it.
MAX_COUNT, MAX_MEASURE = 2**31, 1e9

KINDS = frozenset((TEXT, THOUGHT, CALL, CONTROL))
STATES = frozenset((NOISE, ACCEPTED, SETTLED))


def seen_to_wire(seen: Reading | Snapshot) -> dict[str, Any]:
    """For the extension of a chunk. The record's own tuples: who writes JSON takes them for lists."""
    if isinstance(seen, Reading):
        return {READING: vars(seen)}
    return {SNAPSHOT: {**vars(seen), "likely": None if seen.likely is None else vars(seen.likely)}}


def seen_from_wire(extension: Mapping[str, Any]) -> Reading | Snapshot | None:
    """What the extension of a chunk shows of a reply; None if nothing, or nothing that can be understood.

    It only serves to be looked at, and a reply is no worse without it: so it is left out, and no error.
    """
    kind = next((kind for kind in (READING, SNAPSHOT) if kind in extension), None)
    if kind is None or not _is_small(extension[kind]):
        return None
    try:
        seen = _records(kind).validate_python(extension[kind])
    except ValidationError:
        return None
    is_sound = _is_sound_reading(seen) if isinstance(seen, Reading) else _is_sound_snapshot(seen)
    return seen if is_sound else None


def _is_small(value: object) -> bool:
    """Else each of a million values that are wrong would be an error of its own."""
    level, size = [value], 0
    while level and size <= MAX_VALUES:
        lists = [
            each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list))
        ]
        level = list(chain.from_iterable(lists))
        size += len(level)
    return size <= MAX_VALUES


def _is_sound_reading(reading: Reading) -> bool:
    return 0 <= reading.tokens <= reading.of < MAX_COUNT


def _is_sound_snapshot(snapshot: Snapshot) -> bool:
    length, likely = len(snapshot.pieces), snapshot.likely
    numbers, texts = [snapshot.mean_entropy, snapshot.seconds], list(snapshot.pieces)
    lengths = [len(snapshot.kinds), len(snapshot.states)]
    counts = snapshot.attempt, snapshot.block, snapshot.tokens_before, snapshot.redrawn
    if likely is not None:
        lengths += [len(likely.entropies), len(likely.candidates)]
        numbers += likely.entropies
        for of_position in likely.candidates:
            numbers += (probability for _, probability in of_position)
            texts += (text for text, _ in of_position)
    text = "".join(texts)
    return (
        0 < length <= MAX_POSITIONS
        and all(len(piece) <= MAX_PIECE_CHARACTERS for piece in snapshot.pieces)
        and all(each == length for each in lengths)
        and KINDS.issuperset(snapshot.kinds)
        and STATES.issuperset(snapshot.states)
        and (snapshot.end is None or 0 <= snapshot.end < length)
        and 1 <= snapshot.step <= snapshot.max_steps < MAX_COUNT
        and all(0 <= each < MAX_COUNT for each in counts)
        and snapshot.seconds >= 0
        and all(abs(number) <= MAX_MEASURE for number in numbers)
        and (likely is None or all(len(each) <= MAX_CANDIDATES for each in likely.candidates))
        and len(text) <= MAX_CHARACTERS
        and is_text(text)
    )


@cache
def _records(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(Reading if kind == READING else Snapshot)
