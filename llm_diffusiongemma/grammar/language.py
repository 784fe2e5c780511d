"""Regular languages over bytes: the building blocks, and their minimal automata.

A `Language` is an expression. `minimal_dfa` turns it into a nondeterministic automaton, determinises that and
minimises the result. An intersection can't be written as an expression, so it works on automata;
`embed` makes an automaton part of an expression again.

We determinise ourselves. outlines-core's `Index` builds the automaton of an *unanchored* search and can't be
told otherwise: for a string of at most 20 characters, `"([^"\\\\]|\\\\["\\\\/bfnrt]){0,20}"`, it takes 81 s, and
nothing bounds its memory. Here every construction stops at a number of states.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce

import numpy as np
import numpy.typing as npt

from .dfa import ByteDFA

# No automaton grows beyond this. A reply that is longer than its canvas pays for each state at every denoising
# step, and the documents people ask for need some hundreds.
MAX_STATES = 4096

# A nondeterministic automaton has more: the copies that a union's branches or a counter make before they merge.
MAX_NFA_STATES = 4 * MAX_STATES

# States of the nondeterministic automaton in all states of the deterministic one together. Some expressions have
# both few and large ones; half a second's worth.
MAX_SUBSET_SIZES = 32 * MAX_STATES

Mask = int  # A set of bytes: bit b stands for byte b.

ALL_BYTES: Mask = (1 << 256) - 1


class StateLimitError(Exception):
    """A language needs more than `MAX_STATES` states; the caller knows what to name as the cause."""


class Anchor(Enum):
    """An assertion: the empty text, but only where the whole text begins or ends."""

    START = "^"
    END = "$"


@dataclass(frozen=True, eq=False, slots=True)
class Literal:
    """Exactly these bytes."""

    text: bytes


@dataclass(frozen=True, eq=False, slots=True)
class OneByte:
    """Any one byte of a set."""

    mask: Mask


@dataclass(frozen=True, eq=False, slots=True)
class Concatenation:
    """One part after the other."""

    parts: tuple[Language, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Union:
    """Any one of the parts."""

    parts: tuple[Language, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Repetition:
    """`part`, from `minimum` to `maximum` times; without end where `maximum` is None."""

    part: Language
    minimum: int
    maximum: int | None


@dataclass(frozen=True, eq=False, slots=True)
class Separated:
    """Some of the parts in their order, with a separator between two; the rest follow `rest`.

    A part that is `required` can't be left out. `rest` (None: nothing) may come after the last part any number
    of times, and before the parts of the numbers `before`. In all there are `minimum` to `maximum` (None: no
    bound) of them. Where `rest` `may_repeat` what stands there already, it is one towards the minimum if nothing
    else is, and none otherwise.
    """

    parts: tuple[tuple[Language, bool], ...]
    rest: Language | None
    separator: Language
    minimum: int
    maximum: int | None
    before: frozenset[int] = frozenset()
    may_repeat: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Embedded:
    """The language of an automaton."""

    dfa: ByteDFA
    arcs: tuple[tuple[int, Mask, int], ...]


Language = Literal | OneByte | Concatenation | Union | Repetition | Separated | Embedded | Anchor

EMPTY_TEXT = Literal(b"")
NOTHING = Union(())


def byte_set(values: Iterable[int]) -> Mask:
    """The set of these bytes."""
    return reduce(lambda mask, value: mask | 1 << value, values, 0)


def byte_range(first: int, last: int) -> Mask:
    """The set of the bytes from `first` to `last`, both included."""
    return (1 << last + 1) - (1 << first)


def concatenate(*parts: Language) -> Language:
    """One part after the other. `NOTHING` if one of them is."""
    return NOTHING if NOTHING in parts else Concatenation(parts)


def unite(parts: Sequence[Language]) -> Language:
    """Any one of the parts that aren't `NOTHING`."""
    parts = tuple(part for part in parts if part is not NOTHING)
    if not parts:
        return NOTHING
    return parts[0] if len(parts) == 1 else Union(parts)


def optional(part: Language) -> Language:
    """`part` or the empty text."""
    return Repetition(part, 0, 1)


def embed(dfa: ByteDFA) -> Language:
    """The language of `dfa`, as a part for others. `NOTHING` if it is empty."""
    if dfa.dead == 0:
        return NOTHING
    # Once a kind of bytes, not once a byte.
    masks = [byte_set(np.flatnonzero(dfa.byte_kind == kind).tolist()) for kind in range(dfa.moves.shape[1])]
    arcs: list[tuple[int, Mask, int]] = []
    for state, row in enumerate(dfa.moves[: dfa.dead].tolist()):
        by_target: dict[int, Mask] = {}
        for target, mask in zip(row, masks, strict=True):
            by_target[target] = by_target.get(target, 0) | mask
        by_target.pop(dfa.dead, None)
        arcs += [(state, mask, target) for target, mask in by_target.items()]
    return Embedded(dfa, tuple(arcs))


def size(language: Language) -> int:
    """About the states of a nondeterministic automaton of a language."""
    match language:
        case Literal(text):
            return len(text)
        case Concatenation(parts) | Union(parts):
            return sum(map(size, parts))
        case Repetition(part, minimum, maximum):
            return size(part) * max(1, minimum if maximum is None else maximum)
        case Separated(parts, rest, _, minimum, maximum):
            one = sum(size(part) for part, _ in parts) + (0 if rest is None else size(rest))
            return one * max(1, minimum if maximum is None else maximum)
        case Embedded(dfa, _):
            return dfa.dead
    return 1


def same_language(one: Language, other: Language) -> bool:
    """Whether both are the same automaton, which minimal ones are if they have the same texts."""
    if not isinstance(one, Embedded) or not isinstance(other, Embedded):
        return one is other
    first, second = one.dfa, other.dfa
    return all(
        np.array_equal(getattr(first, table), getattr(second, table))
        for table in ("byte_kind", "moves", "accepting")
    )


def minimal_dfa(language: Language) -> ByteDFA:
    """The language's minimal automaton; of one dead state if the language is empty.

    Raises `StateLimitError`.
    """
    nfa = _Nfa()
    start = nfa.new_state()
    nfa.accept = nfa.add(language, start)
    transitions, accepting, byte_class = nfa.determinise(start)
    return _minimise(transitions, accepting, byte_class)


def intersection(first: ByteDFA, second: ByteDFA) -> ByteDFA:
    """What belongs to both. Raises `StateLimitError`."""
    return _product(first, second, first.accepting[:, None] & second.accepting[None, :])


def difference(first: ByteDFA, second: ByteDFA) -> ByteDFA:
    """What belongs to the first and not to the second. Raises `StateLimitError`."""
    return _product(first, second, first.accepting[:, None] & ~second.accepting[None, :])


# In `_Nfa._separate`: how many parts count towards the minimum, and how many there are; the state to go on from.
Count = tuple[int, int]
States = dict[Count, int]


class _Nfa:
    """A nondeterministic automaton under construction."""

    def __init__(self) -> None:
        # By state: [(bytes, target)], [target] of moves that read nothing, and the same behind an anchor.
        self.arcs: list[list[tuple[Mask, int]]] = []
        self.empty_moves: list[list[int]] = []
        self.anchored: dict[int, list[tuple[Anchor, int]]] = {}
        self.accept = -1

    def new_state(self) -> int:
        if len(self.arcs) >= MAX_NFA_STATES:
            raise StateLimitError
        self.arcs.append([])
        self.empty_moves.append([])
        return len(self.arcs) - 1

    def add(self, language: Language, source: int) -> int:
        """Draw the language from `source`, and return the state where it ends.

        **Invariant**: nothing leads back into `source`, and the end leads nowhere. What is drawn from or to them
        later can't be mixed up with the language.
        """
        match language:
            case Literal(text):
                for byte in text:
                    source = self._read(source, 1 << byte)
                return self._skip(source, self.new_state())
            case OneByte(mask):
                return self._read(source, mask)
            case Concatenation(parts):
                for part in parts:
                    source = self.add(part, source)
                return self._skip(source, self.new_state())
            case Union(parts):
                end = self.new_state()
                for part in parts:
                    self._skip(self.add(part, self._skip(source, self.new_state())), end)
                return end
            case Repetition(part, minimum, maximum):
                return self._repeat(part, minimum, maximum, source)
            case Separated():
                return self._separate(language, source)
            case Embedded(dfa, arcs):
                states = [self.new_state() for _ in range(dfa.dead)]
                end = self.new_state()
                self._skip(source, states[0])
                for state, mask, target in arcs:
                    self.arcs[states[state]].append((mask, states[target]))
                for state in np.flatnonzero(dfa.accepting).tolist():
                    self._skip(states[state], end)
                return end
            case Anchor():
                end = self.new_state()
                self.anchored.setdefault(source, []).append((language, end))
                return end

    def _read(self, source: int, mask: Mask) -> int:
        target = self.new_state()
        self.arcs[source].append((mask, target))
        return target

    def _skip(self, source: int, target: int) -> int:
        self.empty_moves[source].append(target)
        return target

    def _repeat(self, part: Language, minimum: int, maximum: int | None, source: int) -> int:
        end = self.new_state()
        for _ in range(minimum):
            source = self.add(part, source)
        if maximum is None:
            loop = self._skip(source, self.new_state())
            self._skip(self.add(part, loop), loop)
            self._skip(loop, end)
            return end
        for _ in range(maximum - minimum):
            self._skip(source, end)
            source = self.add(part, source)
        self._skip(source, end)
        return end

    def _separate(self, language: Separated, source: int) -> int:
        # A position is how many parts have been decided on, how many count towards the minimum and how many stand
        # there (none counted further than a bound can tell). All ways to a position share what follows it.
        minimum, maximum = language.minimum, language.maximum
        most = 1 if maximum is None else maximum
        end = self.new_state()

        def add_part(
            part: Language, count: Count, state: int, begins: States, following: States, may_repeat: bool = False
        ) -> None:
            """From `state` through `part`, with a separator unless it is the first, to its place in `following`.

            `begins` are where the part has been drawn already, by the count that it leads to.
            """
            towards, there = count
            if there == most and maximum is not None:
                return
            towards = max(towards, 1) if may_repeat else towards + 1
            after = min(towards, minimum), min(there + 1, most)
            if after not in begins:
                begins[after] = self.new_state()
                if after not in following:
                    following[after] = self.new_state()
                self._skip(self.add(part, begins[after]), following[after])
            self._skip(self.add(language.separator, state) if there else state, begins[after])

        def add_rest(states: States) -> None:
            if language.rest is None:
                return
            begins: States = {}
            done: set[Count] = set()
            while fresh := states.keys() - done:
                # What it leads to is never smaller.
                count = min(fresh)
                done.add(count)
                add_part(language.rest, count, states[count], begins, states, language.may_repeat)

        states: States = {(0, 0): source}
        for number, (part, required) in enumerate(language.parts):
            if number in language.before:
                add_rest(states)
            begins: States = {}
            following: States = {}
            for count, state in states.items():
                add_part(part, count, state, begins, following)
            if not required:
                for count, state in states.items():
                    if count not in following:
                        following[count] = self.new_state()
                    self._skip(state, following[count])
            states = following
        add_rest(states)
        for (towards, _), state in states.items():
            if towards >= minimum:
                self._skip(state, end)
        return end

    def _closure(self, states: Iterable[int], *anchors: Anchor) -> frozenset[int]:
        """All that can be reached without reading a byte, less what nothing depends on."""
        seen = set(states)
        stack = list(seen)
        while stack:
            state = stack.pop()
            targets = self.empty_moves[state]
            if state in self.anchored:
                targets = targets + [target for anchor, target in self.anchored[state] if anchor in anchors]
            for target in targets:
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        return frozenset(s for s in seen if self.arcs[s] or s == self.accept or s in self.anchored)

    def _byte_classes(self) -> tuple[npt.NDArray[np.intp], dict[Mask, list[int]]]:
        """The class of each byte, `[256]`, and each mask as classes. No arc tells bytes of one class apart."""
        masks = list({mask for arcs in self.arcs for mask, _ in arcs})
        packed = np.frombuffer(b"".join(mask.to_bytes(32, "little") for mask in masks), np.uint8)
        member = np.unpackbits(packed.reshape(len(masks), 32), axis=1, bitorder="little").astype(bool)
        _, first, byte_class = np.unique(member, axis=1, return_index=True, return_inverse=True)
        byte_class = byte_class.reshape(-1)
        return byte_class, {m: np.flatnonzero(row[first]).tolist() for m, row in zip(masks, member, strict=True)}

    def determinise(self, start: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.intp]]:
        """Transitions `[states, classes]`, accepting `[states]` and the class of each byte `[256]`.

        State 0 is the start and the last one is dead. Raises `StateLimitError`.
        """
        byte_class, classes_of = self._byte_classes()
        num_classes = int(byte_class.max()) + 1
        moves = [[(classes_of[mask], target) for mask, target in arcs] for arcs in self.arcs]
        closures: dict[frozenset[int], frozenset[int]] = {}
        # The start stands apart: only there does Anchor.START hold.
        subsets = [self._closure([start], Anchor.START)]
        numbers: dict[frozenset[int], int] = {}
        accepting = [self.accept in self._closure([start], Anchor.START, Anchor.END)]
        rows: list[list[int]] = []
        subset_sizes = 0
        while len(rows) < len(subsets):
            subset_sizes += len(subsets[len(rows)])
            if subset_sizes > MAX_SUBSET_SIZES:
                raise StateLimitError
            targets: list[set[int] | None] = [None] * num_classes
            for state in subsets[len(rows)]:
                for classes, target in moves[state]:
                    for byte in classes:
                        reached = targets[byte]
                        if reached is None:
                            targets[byte] = {target}
                        else:
                            reached.add(target)
            row = [-1] * num_classes
            for byte, reached in enumerate(targets):
                if reached is None:
                    continue
                key = frozenset(reached)
                subset = closures.get(key)
                if subset is None:
                    subset = closures[key] = self._closure(key)
                number = numbers.get(subset)
                if number is None:
                    number = numbers[subset] = len(subsets)
                    subsets.append(subset)
                    accepting.append(
                        self.accept in (self._closure(subset, Anchor.END) if self.anchored else subset)
                    )
                    if number > MAX_STATES:
                        raise StateLimitError
                row[byte] = number
            rows.append(row)
        transitions = np.array([*rows, [-1] * num_classes], np.int32)
        transitions[transitions < 0] = len(rows)
        return transitions, np.array([*accepting, False]), byte_class


def _product(first: ByteDFA, second: ByteDFA, accepting: npt.NDArray[np.bool_]) -> ByteDFA:
    """Both automata side by side; a pair of states accepts as `accepting`, `[first, second]`, says."""
    width = len(second.accepting)
    # A kind of bytes for each pair of theirs that some byte has.
    pair_of_byte = first.byte_kind * second.moves.shape[1] + second.byte_kind
    kinds, byte_class = np.unique(pair_of_byte, return_inverse=True)
    one = first.moves[:, kinds // second.moves.shape[1]]
    two = second.moves[:, kinds % second.moves.shape[1]]
    pairs = np.zeros(1, np.int64)
    fresh = pairs
    while len(fresh):
        targets = np.unique(one[fresh // width].astype(np.int64) * width + two[fresh % width])
        # Nothing accepts once the first is dead.
        fresh = np.setdiff1d(targets[targets // width != first.dead], pairs, assume_unique=True)
        pairs = np.concatenate([pairs, fresh])
        if len(pairs) > MAX_STATES:
            raise StateLimitError
    order = np.argsort(pairs)
    targets = one[pairs // width].astype(np.int64) * width + two[pairs % width]
    place = np.minimum(np.searchsorted(pairs, targets, sorter=order), len(pairs) - 1)
    numbers = np.where(pairs[order[place]] == targets, order[place], len(pairs))
    transitions = np.concatenate([numbers, np.full((1, numbers.shape[1]), len(pairs))]).astype(np.int32)
    accepts = np.append(accepting[pairs // width, pairs % width], False)
    return _minimise(transitions, accepts, byte_class.reshape(-1))


def _minimise(
    transitions: npt.NDArray[np.int32], accepting: npt.NDArray[np.bool_], byte_class: npt.NDArray[np.intp]
) -> ByteDFA:
    """The minimal automaton of `[states, classes]`, whose start is 0, whose last state is dead and whose states
    are all reachable."""
    parts = _equivalent_states(transitions, accepting)
    num_parts = int(parts.max()) + 1
    representative = np.zeros(num_parts, np.intp)
    representative[parts] = np.arange(len(parts))
    merged = parts[transitions[representative]]
    dead = int(parts[-1])
    numbers = np.full(num_parts, num_parts - 1, np.int32)
    order: list[int] = []
    queue = deque([int(parts[0])])
    seen = {dead, queue[0]}
    while queue:
        part = queue.popleft()
        if part != dead:
            numbers[part] = len(order)
            order.append(part)
        for target in dict.fromkeys(merged[part].tolist()):
            if target not in seen:
                seen.add(target)
                queue.append(target)
    order.append(dead)
    return ByteDFA.of(numbers[merged[order]], byte_class, accepting[representative[order]])


def _equivalent_states(
    transitions: npt.NDArray[np.int32], accepting: npt.NDArray[np.bool_]
) -> npt.NDArray[np.intp]:
    """A number for each state, `[states]`: the same where the same texts are accepted from there.

    Moore's refinement. It starts from the length of the shortest accepted text, which equivalent states share
    and which tells most of the states of a long literal apart at once; from "accepting or not" a chain of n
    states would need n rounds.
    """
    random = np.random.default_rng(0)
    weights = random.integers(1 << 63, size=transitions.shape[1], dtype=np.int64) | 1
    parts = shortest_accepted(transitions, accepting)
    num_parts = -1
    while True:
        _, parts = np.unique(parts, return_inverse=True)
        if parts.max() == num_parts:
            break
        num_parts = int(parts.max())
        # Signatures are compared by a random hash modulo 2^64 ...
        parts = parts * int(random.integers(1 << 62) | 1) + parts[transitions] @ weights
    # ... and a collision, which would merge states that differ, is looked for.
    representative = np.zeros(num_parts + 1, np.intp)
    representative[parts] = np.arange(len(parts))
    same = representative[parts]
    if (parts[transitions] != parts[transitions[same]]).any() or (accepting != accepting[same]).any():
        raise AssertionError("two different states of an automaton have the same hash")
    return parts


def shortest_accepted(
    transitions: npt.NDArray[np.int32], accepting: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """The bytes of the shortest text that is accepted from each state, `[states]`; -1 where none is."""
    predecessors: list[list[int]] = [[] for _ in accepting]
    for state, row in enumerate(transitions.tolist()):
        for target in set(row):
            predecessors[target].append(state)
    length = np.full(len(accepting), -1, np.int64)
    length[accepting] = 0
    queue = deque(np.flatnonzero(accepting).tolist())
    while queue:
        state = queue.popleft()
        for previous in predecessors[state]:
            if length[previous] < 0:
                length[previous] = length[state] + 1
                queue.append(previous)
    return length
