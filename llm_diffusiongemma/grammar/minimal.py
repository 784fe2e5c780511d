"""The minimal automaton of a deterministic one that is given by its rows.

A row says where a state's bytes lead, by sets of bytes: an automaton of a schema has tens of thousands of states,
and most of them read one byte only. All that grows with states times kinds of bytes is done by numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .dfa import ByteDFA, Row

# A round of refinement takes as long as to look whether so many states can be settled; that is done after so many
# rounds at least.
_STATES_OF_ROUND = 200
_ROUNDS_TO_SETTLE = 12

# States whose merging is verified at once.
_CHUNK = 4096


def minimal(rows: Sequence[Row], accepting: Sequence[bool]) -> ByteDFA:
    """The minimal automaton; of one dead state if the language is empty.

    State 0 is the start. The sets of a row have no byte in common; a byte in none of them is the end of all hope.
    """
    counts = np.fromiter(map(len, rows), np.int64, len(rows))
    targets = np.array([target for row in rows for _, target in row], np.int64)
    length = shortest_ways(np.repeat(np.arange(len(rows)), counts), targets, accepting)
    if length[0] < 0:
        return ByteDFA(np.zeros((1, 1), np.int32), np.zeros(256, np.int32), np.zeros(1, np.bool_))
    arcs = _Arcs.of(rows, counts, targets, length)
    parts = _equivalent_states(rows, arcs, length)
    merged = arcs.merged(parts)
    order = merged.order(int(parts[0]))
    numbers = np.zeros(len(merged.representative), np.int32)  # those that nothing leads to have none
    numbers[order] = np.arange(len(order), dtype=np.int32)
    moves = np.full((len(order) + 1, merged.num_classes), len(order), np.int32)
    merged.fill(moves, order, numbers)
    accepts = np.zeros(len(order) + 1, np.bool_)
    accepts[:-1] = length[merged.representative[order]] == 0
    return ByteDFA.of(moves, merged.byte_class, accepts)


def minimised(dfa: ByteDFA) -> ByteDFA:
    """The same language's minimal automaton, of one that may have unreachable and equivalent states."""
    return minimal(dfa.rows, dfa.accepting[:-1].tolist())


def shortest_ways(
    sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], accepting: Sequence[bool]
) -> npt.NDArray[np.int64]:
    """The bytes of the shortest text that is accepted from each state, `[states]`; -1 where none is.

    `sources` and `targets`, `[arcs]`, are where the moves come from and lead.
    """
    order = np.argsort(targets, kind="stable")
    before = sources[order].tolist()
    first = np.searchsorted(targets[order], np.arange(len(accepting) + 1)).tolist()
    length = [0 if accepts else -1 for accepts in accepting]
    queue = [state for state, accepts in enumerate(accepting) if accepts]
    for state in queue:
        one_more = length[state] + 1
        for previous in before[first[state] : first[state + 1]]:
            if length[previous] < 0:
                length[previous] = one_more
                queue.append(previous)
    return np.array(length, np.int64)


@dataclass(frozen=True)
class _Arcs:
    """All moves of an automaton, in the order of the states that they leave.

    - `first` `[states + 1]`: where a state's arcs begin;
    - `mask`, `target` `[arcs]`: the number of the set of bytes, and where it leads;
    - `byte_class` `[256]`: no set tells bytes of one class apart;
    - `classes`, `first_class` `[sets + 1]`: the classes in each set, one set after the other;
    - `first_byte` `[sets]`: the lowest byte of each set;
    - `representative` `[states]`: the states in the automaton that this one is made of.
    """

    first: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    byte_class: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    first_class: npt.NDArray[np.int64]
    first_byte: npt.NDArray[np.int64]
    representative: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        counts: npt.NDArray[np.int64],
        target: npt.NDArray[np.int64],
        length: npt.NDArray[np.int64],
    ) -> _Arcs:
        """Without what leads to states from which nothing is accepted."""
        known: dict[int, int] = {}
        mask = np.array([known.setdefault(mask, len(known)) for row in rows for mask, _ in row], np.int64)
        alive = length[target] >= 0
        if not alive.all():
            sources = np.repeat(np.arange(len(rows)), counts)[alive]
            counts, target, mask = np.bincount(sources, minlength=len(rows)), target[alive], mask[alive]
        packed = np.frombuffer(b"".join(each.to_bytes(32, "little") for each in known or [0]), np.uint8)
        member = np.unpackbits(packed.reshape(-1, 32), axis=1, bitorder="little").astype(bool)
        _, byte_of_class, byte_class = np.unique(
            np.packbits(member, axis=0), axis=1, return_index=True, return_inverse=True
        )
        in_class = member[:, byte_of_class]
        return cls(
            np.concatenate([[0], np.cumsum(counts)]),
            mask,
            target,
            byte_class.reshape(-1),
            np.nonzero(in_class)[1],
            np.concatenate([[0], np.cumsum(in_class.sum(1))]),
            member.argmax(1),
            np.arange(len(rows)),
        )

    @property
    def num_classes(self) -> int:
        return int(self.byte_class.max()) + 1

    def of_states(self, states: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The arcs of these states one after the other, and how many each has."""
        counts = self.first[states + 1] - self.first[states]
        return _ranges(self.first[states], counts), counts

    def merged(self, parts: npt.NDArray[np.int64]) -> _Arcs:
        """With one state for all that are of one part, `[states]`; -1 for those that are left out."""
        representative = np.zeros(int(parts.max()) + 1, np.int64)
        states = np.flatnonzero(parts >= 0)[::-1]
        representative[parts[states]] = states
        arcs, counts = self.of_states(representative)
        # By the lowest byte, so that what is numbered along them is the same however their bytes are split.
        by_byte = np.lexsort((self.first_byte[self.mask[arcs]], np.repeat(np.arange(len(counts)), counts)))
        arcs = arcs[by_byte]
        return _Arcs(
            np.concatenate([[0], np.cumsum(counts)]),
            self.mask[arcs],
            parts[self.target[arcs]],
            self.byte_class,
            self.classes,
            self.first_class,
            self.first_byte,
            representative,
        )

    def order(self, start: int) -> npt.NDArray[np.int64]:
        """The states from the start on, nearest first."""
        first, targets = self.first.tolist(), self.target.tolist()
        seen = [False] * (len(first) - 1)
        seen[start] = True
        order = [start]
        for state in order:
            for target in targets[first[state] : first[state + 1]]:
                if not seen[target]:
                    seen[target] = True
                    order.append(target)
        return np.array(order, np.int64)

    def fill(
        self, moves: npt.NDArray[np.int32], states: npt.NDArray[np.int64], numbers: npt.NDArray[np.int32]
    ) -> None:
        """Write where the classes lead, by `numbers` `[states]`, into the states' `moves` `[n, classes]`."""
        arcs, counts = self.of_states(states)
        masks = self.mask[arcs]
        widths = self.first_class[masks + 1] - self.first_class[masks]
        places = self.classes[_ranges(self.first_class[masks], widths)]
        row_of_arc = np.repeat(np.arange(len(states)), counts)
        moves[np.repeat(row_of_arc, widths), places] = np.repeat(numbers[self.target[arcs]], widths)


def _ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """start, start + 1, ... for each of these, one after the other."""
    ends = np.cumsum(lengths)
    within: npt.NDArray[np.int64] = np.repeat(starts - (ends - lengths), lengths)
    within += np.arange(len(within))
    return within


class _Refinement:
    """Moore's refinement, from what equivalent states must share: the length of the shortest accepted text and the
    bytes that lead on.

    Of a part that is split the largest piece keeps its number, as in Hopcroft's algorithm, and only what leads to
    states with new numbers is looked at again.

    - `parts` `[states]`: the number of the part of each state; -1 where nothing is accepted;
    - `sizes`: how many states a part has, by its number;
    - `changed`: the states that lead to others than when they were looked at last, if their part isn't their own.
    """

    def __init__(self, arcs: _Arcs, length: npt.NDArray[np.int64]) -> None:
        random = np.random.default_rng(0)
        class_weights = random.integers(1 << 63, size=arcs.num_classes, dtype=np.int64) | 1
        # A set weighs as much as its classes together: it doesn't matter how a state's bytes are split into sets.
        self._weights = _sums(class_weights[arcs.classes], arcs.first_class)[arcs.mask]
        self._source = np.repeat(np.arange(len(length)), np.diff(arcs.first))
        self._arcs_to = np.argsort(arcs.target, kind="stable")
        self._first_to = np.searchsorted(arcs.target[self._arcs_to], np.arange(len(length) + 1))
        self._alive = np.flatnonzero(length >= 0)
        signatures = _scattered(length) * 3 + _sums(self._weights, arcs.first)
        _, of_alive, sizes = np.unique(signatures[self._alive], return_inverse=True, return_counts=True)
        self.parts = np.full(len(length), -1, np.int64)
        self.parts[self._alive] = of_alive.reshape(-1)
        self.num_parts = len(sizes)
        # Every state can be given a number of its own by a split, and once more when it is settled.
        self.sizes = np.zeros(self.num_parts + 2 * len(length), np.int64)
        self.sizes[: self.num_parts] = sizes
        # Within a part states are compared by a random hash modulo 2^64 ...
        self._signatures = _sums(self._weights * _scattered(self.parts[arcs.target]), arcs.first)
        self.changed = self.undecided(self._alive)

    def undecided(self, states: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those of the states which aren't alone in their part."""
        return states[self.sizes[self.parts[states]] > 1]

    def split(self) -> None:
        """Split the parts of what has changed. What has not changed in them is a piece as well."""
        parts = self.parts[self.changed]
        order = np.lexsort((self._signatures[self.changed], parts))
        states, parts = self.changed[order], parts[order]
        signatures = self._signatures[states]
        first = np.flatnonzero(_changes(parts) | _changes(signatures))
        pieces = _lengths(first, len(states))
        part_of_piece = parts[first]
        first_piece = np.flatnonzero(_changes(part_of_piece))
        split, counts = part_of_piece[first_piece], _lengths(first_piece, len(pieces))
        unchanged = self.sizes[split] - np.add.reduceat(pieces, first_piece)
        largest = np.maximum.reduceat(pieces, first_piece)
        is_largest = np.flatnonzero(pieces == np.repeat(largest, counts))
        keeping = is_largest[_changes(part_of_piece[is_largest])]
        goes = np.ones(len(pieces), np.bool_)
        goes[keeping[unchanged <= largest]] = False
        numbers = np.zeros(len(pieces), np.int64)
        numbers[goes] = self.num_parts + np.arange(int(goes.sum()))
        fresh = self.num_parts + int(goes.sum())
        each = np.repeat(goes, pieces)
        moved, given = states[each], np.repeat(numbers, pieces)[each]
        leaving = split[(unchanged <= largest) & (unchanged > 0)]
        if len(leaving):
            number_of = np.zeros(self.num_parts, np.int64)
            number_of[leaving] = fresh + np.arange(len(leaving))
            fresh += len(leaving)
            left = self._alive[number_of[self.parts[self._alive]] > 0]
            stays = np.ones(len(self.parts), np.bool_)
            stays[states] = False
            left = left[stays[left]]
            moved, given = np.concatenate([moved, left]), np.concatenate([given, number_of[self.parts[left]]])
        self.renumber(moved, given, fresh)

    def renumber(self, states: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64], num_parts: int) -> None:
        """Give states new numbers, and find what has changed by that."""
        before = self.parts[states]
        np.subtract.at(self.sizes, before, 1)
        np.add.at(self.sizes, numbers, 1)
        self.num_parts = num_parts
        self.parts[states] = numbers
        counts = self._first_to[states + 1] - self._first_to[states]
        arcs = self._arcs_to[_ranges(self._first_to[states], counts)]
        sources = self._source[arcs]
        other = np.repeat(_scattered(numbers) - _scattered(before), counts)
        np.add.at(self._signatures, sources, self._weights[arcs] * other)
        self.changed = self.undecided(np.unique(sources))

    def settle(self, states: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64], num_parts: int) -> None:
        """Give states new numbers that are final."""
        before, others = self.num_parts, self.changed
        self.renumber(states, numbers, num_parts)
        changed = self.undecided(np.union1d(others, self.changed))
        self.changed = changed[self.parts[changed] < before]


def _changes(values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether each value is another one than the one before it; the first one is."""
    found = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=found[1:])
    return found


def _lengths(first: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """How much lies from each place to the next one; behind the last one, to `total`."""
    lengths = np.empty_like(first)
    np.subtract(first[1:], first[:-1], out=lengths[:-1])
    lengths[-1] = total - first[-1]
    return lengths


def _equivalent_states(rows: Sequence[Row], arcs: _Arcs, length: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A number for each state, `[states]`: the same where the same texts are accepted; -1 where none is.

    Refinement needs as many rounds as there are bytes to the nearest difference, thousands in a counter. So now
    and then `_settle` goes through what doesn't depend on anything undecided any more.
    """
    refinement = _Refinement(arcs, length)
    left = np.flatnonzero(length >= 0)
    # Without patience at first: of what has an end much is settled at once.
    work = patience = 0
    while len(refinement.changed):
        work += len(refinement.changed) // 4 + _STATES_OF_ROUND
        if work <= patience * (len(left) + _STATES_OF_ROUND * _ROUNDS_TO_SETTLE):
            refinement.split()
            continue
        work = 0
        left = refinement.undecided(left)
        numbers = refinement.parts.copy()
        num_parts = _settle(rows, arcs, numbers, left, refinement.num_parts)
        settled = numbers[left] >= 0
        patience = 1 if settled.any() else max(1, 2 * patience)
        refinement.settle(left[settled], numbers[left[settled]], num_parts)
        left = left[~settled]
    parts = refinement.parts
    _, compact = np.unique(parts, return_inverse=True)
    parts = compact.reshape(-1) - int((length < 0).any())
    _verify(arcs, parts, length == 0)
    return parts


def _settle(
    rows: Sequence[Row], arcs: _Arcs, parts: npt.NDArray[np.int64], left: npt.NDArray[np.int64], num_parts: int
) -> int:
    """Give those of the states `left` a final number that lead to finally numbered ones only.

    What is equivalent to such a state leads to the same numbers, so it is recognised by them. The others' `parts`
    become negative (`~part`). Returns the new number of parts.
    """
    own, counts = arcs.of_states(left)
    sources, targets = np.repeat(left, counts), arcs.target[own]
    parts[left] = ~parts[left]
    undecided = parts[targets] < 0
    ready = np.setdiff1d(left, sources[undecided]).tolist()
    if not ready:
        return num_parts
    inside = np.flatnonzero(undecided)
    inside = inside[np.argsort(targets[inside], kind="stable")]
    before = sources[inside].tolist()
    first = np.searchsorted(targets[inside], np.arange(len(parts) + 1)).tolist()
    waiting = np.bincount(sources[inside], minlength=len(parts)).tolist()
    numbers = parts.tolist()
    # Within its part, which tells already whether it accepts.
    known: dict[tuple[int, frozenset[tuple[int, int]]], int] = {}
    for state in ready:
        by_part: dict[int, int] = {}
        for mask, target in rows[state]:
            by_part[numbers[target]] = by_part.get(numbers[target], 0) | mask
        by_part.pop(-1, None)
        key = numbers[state], frozenset(by_part.items())
        number = known.get(key)
        if number is None:
            number = known[key] = num_parts
            num_parts += 1
        numbers[state] = number
        for source in before[first[state] : first[state + 1]]:
            waiting[source] -= 1
            if not waiting[source]:
                ready.append(source)
    parts[ready] = [numbers[state] for state in ready]
    return num_parts


def _scattered(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Different numbers for different ones, as if drawn at random."""
    spread: npt.NDArray[np.int64] = (numbers + 1) * 0x1E3779B97F4A7C15
    spread ^= spread >> 29
    spread *= 0x3F58476D1CE4E5B9
    return spread


def _sums(values: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The sums, modulo 2^64, from each place in `first` to the next one."""
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    sums: npt.NDArray[np.int64] = total[first[1:]] - total[first[:-1]]
    return sums


def _verify(arcs: _Arcs, parts: npt.NDArray[np.int64], accepting: npt.NDArray[np.bool_]) -> None:
    """... and a collision, which would merge states that differ, is looked for."""
    representative = np.zeros(int(parts.max()) + 1, np.int64)
    states = np.flatnonzero(parts >= 0)
    representative[parts[states]] = states
    others = states[representative[parts[states]] != states]
    numbers = parts.astype(np.int32)
    for begin in range(0, len(others), _CHUNK):
        some = others[begin : begin + _CHUNK]
        rows = np.full((2, len(some), arcs.num_classes), -1, np.int32)
        for row, each in zip(rows, (some, representative[parts[some]]), strict=True):
            arcs.fill(row, each, numbers)
        if (rows[0] != rows[1]).any() or (accepting[some] != accepting[representative[parts[some]]]).any():
            raise AssertionError("two different states of an automaton have the same hash")
