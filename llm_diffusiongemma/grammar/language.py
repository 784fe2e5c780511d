"""Regular languages over bytes: the building blocks, and their minimal automata.

A `Language` is an expression. `minimal_dfa` turns it into a nondeterministic automaton, determinises that and
minimises the result. An intersection can't be written as an expression, so it works on automata;
`embed` makes an automaton part of an expression again.

We determinise ourselves. outlines-core's `Index` builds the automaton of an *unanchored* search and can't be
told otherwise: for a string of at most 20 characters, `"([^"\\\\]|\\\\["\\\\/bfnrt]){0,20}"`, it takes 81 s, and
nothing bounds its memory. Here every construction stops at a number of states.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, reduce

import numpy as np

from .dfa import ByteDFA, Mask, Row
from .minimal import minimal

# No automaton grows beyond this. A denoising step pays for the states that a canvas can reach.
MAX_STATES = 1 << 16

# One that isn't minimal yet may have more: of states drawn from an expression, and of the deterministic ones that
# are made of them.
MAX_DRAWN_STATES = 3 * MAX_STATES
MAX_UNMERGED_STATES = MAX_STATES + MAX_STATES // 2

# By this much a language may look larger than it is, since equal parts share states.
MAX_ESTIMATED_STATES = 6 * MAX_STATES

# The elements in all sets of states together, and pairs of moves that are compared. Some expressions have both few
# and large sets; half a second's worth.
MAX_SET_SIZES = 16 * MAX_STATES

# What a drawing begins with: the end of the whole text, and a state that nothing leads on from.
_NOWHERE, _END = 0, 1

ALL_BYTES: Mask = (1 << 256) - 1


class StateLimitError(Exception):
    """A language takes too much to build; the caller knows what to name as the cause."""

    def __init__(self, what: str = f"an automaton of more than {MAX_STATES:,} states") -> None:
        super().__init__(what)


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
    bound) of them. Where the rest `may_repeat` it is no more towards the minimum than one, and that only where it
    comes first; which takes that there is no maximum.
    """

    parts: tuple[tuple[Language, bool], ...]
    rest: Language | None
    separator: Language
    minimum: int
    maximum: int | None
    before: frozenset[int] = frozenset()
    may_repeat: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Branching:
    """A text of an automaton, and then what its state says: one of the languages whose states it is among."""

    dfa: ByteDFA
    exits: tuple[tuple[frozenset[int], Language], ...]


@dataclass(frozen=True, eq=False, slots=True)
class Embedded:
    """The language of an automaton."""

    dfa: ByteDFA


Language = Literal | OneByte | Concatenation | Union | Repetition | Separated | Embedded | Branching | Anchor

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
    return Embedded(dfa)


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
    """The language's minimal automaton; of one dead state if the language is empty. Raises `StateLimitError`."""
    if isinstance(language, Embedded):
        return language.dfa
    if estimated_states(language) > MAX_ESTIMATED_STATES:
        raise StateLimitError
    return drawn_dfa(language)


def drawn_dfa(language: Language, most: int = MAX_DRAWN_STATES) -> ByteDFA:
    """The same, however large it looks, if no more than `most` states are drawn for it.

    For what is mostly the same objects in many places, which an estimate counts in each. Raises `StateLimitError`.
    """
    return Drawn(language, most).dfa(most)


def estimated_states(language: Language) -> int:
    """How many states a language takes, without building it: too many rather than too few.

    It is what stands in the expression, as often as it is repeated. What equal parts share isn't known before they
    are drawn, nor what an intersection or a union of counters multiplies.
    """
    known: dict[Language, int] = {}

    def states(language: Language) -> int:
        if language not in known:
            known[language] = count(language)
        return known[language]

    def count(language: Language) -> int:
        match language:
            case Literal(text):
                return len(text)
            case OneByte():
                return 1
            case Concatenation(parts) | Union(parts):
                return sum(map(states, parts))
            case Repetition(part, minimum, maximum):
                return states(part) * max(1, minimum + 1 if maximum is None else maximum)
            case Separated(parts, rest, separator, minimum, maximum, before):
                # A part may come at any count; without bounds it matters only whether it is the first one.
                most = max(minimum, 1) if maximum is None else maximum
                total = sum(states(part) * min(place + 1, most) for place, (part, _) in enumerate(parts))
                total += states(separator) * min(most, len(parts)) * len(parts)
                return total + (
                    0 if rest is None else (states(rest) + states(separator)) * most * (1 + len(before))
                )
            case Embedded(dfa):
                return dfa.dead
            case Branching(dfa, exits):
                return dfa.dead + sum(states(part) for _, part in exits)
            case Anchor():
                return 0

    return states(language)


class Drawn:
    """A language on its way to its automaton, of which it is known about how large that will be.

    - `num_states`: there are more of them before they are merged, and fewer before choices that begin alike are
      told apart.
    """

    def __init__(self, language: Language, most: int) -> None:
        """Raises `StateLimitError` if there are more than `most` states."""
        self._drawing = _Drawing(most)
        self._start = self._drawing.draw(language, _END)
        self.num_states = self._drawing.num_states

    def dfa(self, most: int = MAX_DRAWN_STATES) -> ByteDFA:
        """The minimal automaton, if no more than `most` states are drawn for it. Raises `StateLimitError`."""
        self._drawing.most_states = most
        return _limited(*self._drawing.determinise(self._start))


def intersection(first: ByteDFA, second: ByteDFA) -> ByteDFA:
    """What belongs to both. Raises `StateLimitError`."""
    return _product(first, second, lambda one, two: one and two, beyond_second=False)


def difference(first: ByteDFA, second: ByteDFA) -> ByteDFA:
    """What belongs to the first and not to the second. Raises `StateLimitError`."""
    return _product(first, second, lambda one, two: one and not two, beyond_second=True)


class _Drawing:
    """An expression as a nondeterministic automaton, drawn from its end.

    Every state is drawn with what follows it, so that equal ones are the same state from the beginning: literals
    share their ends, and a language that stands in several places with the same sequel is drawn once.

    A state is a number. It is either a *node*, whose bytes lead on as its `_row` says (no two ways on for one
    byte), or a set of several nodes (`sets`), or what stands for another state: the head of a loop (`loops`),
    or what is behind an anchor (`anchors`). These may be elements of sets, and are resolved by `_closed`.

    The states of an automaton that is a part are numbered one after the other, and get their rows when these are
    asked for: much of what is drawn turns out to be too much.
    """

    def __init__(self, most_states: int = MAX_DRAWN_STATES) -> None:
        self.most_states = most_states
        self.rows: dict[int, Row] = {_END: ()}
        self.sets: dict[int, frozenset[int]] = {_NOWHERE: frozenset()}
        self.loops: dict[int, int] = {}
        self.anchors: dict[int, tuple[Anchor, int]] = {}
        # Loops and anchors: what a state that can be told by its nodes has none of.
        self.signposts: set[int] = set()
        # Of each automaton: the number of its start, and by that its rows and where states lead if not to nodes.
        self.starts: list[int] = []
        self.automata: list[tuple[Sequence[Row], dict[int, int]]] = []
        self.num_states = self.next_number = 2
        self.work = 0
        self.set_numbers: dict[frozenset[int], int] = {frozenset(): _NOWHERE}
        self.readers: dict[tuple[Mask, int], int] = {}
        self.drawn: dict[tuple[Language, int], int] = {}
        self.unions: dict[tuple[int, int], int] = {}

    def draw(self, language: Language, following: int) -> int:
        """The state from which a text of the language leads to the state `following`."""
        if following == _NOWHERE:
            return _NOWHERE
        key = (language, following)
        if key not in self.drawn:
            self.drawn[key] = self._draw(language, following)
        return self.drawn[key]

    def _draw(self, language: Language, following: int) -> int:
        match language:
            case Literal(text):
                for byte in reversed(text):
                    following = self._read(1 << byte, following)
                return following
            case OneByte(mask):
                return self._read(mask, following)
            case Concatenation(parts):
                for part in reversed(parts):
                    following = self.draw(part, following)
                return following
            case Union(parts):
                return self._unite([self.draw(part, following) for part in parts])
            case Repetition(part, minimum, maximum):
                return self._repeat(part, minimum, maximum, following)
            case Separated():
                return self._separate(language, following)
            case Embedded(dfa):
                return self._embed(dfa, dict.fromkeys(np.flatnonzero(dfa.accepting).tolist(), following))
            case Branching(dfa, exits):
                leading: dict[int, int] = {}
                for ends, part in exits:
                    begin = self.draw(part, following)
                    for end in ends:
                        leading[end] = self._either(leading.get(end, _NOWHERE), begin)
                return self._embed(dfa, leading)
            case Anchor():
                state = self._new_state()
                self.signposts.add(state)
                self.anchors[state] = (language, following)
                self.rows[state] = ()
                return state

    def _new_state(self) -> int:
        self._take(1)
        return self._numbers(1)

    def _numbers(self, count: int) -> int:
        """The first of so many numbers for states."""
        self.next_number += count
        return self.next_number - count

    def _take(self, count: int) -> None:
        """There are so many states more."""
        self.num_states += count
        if self.num_states > self.most_states:
            raise StateLimitError

    def _read(self, mask: Mask, following: int) -> int:
        """The node that any byte of a set leads on from."""
        if not mask:
            return _NOWHERE
        key = (mask, following)
        state = self.readers.get(key)
        if state is None:
            state = self.readers[key] = self._new_state()
            self.rows[state] = (key,)
        return state

    def _unite(self, states: Iterable[int]) -> int:
        """What leads on from any of the states."""
        distinct = set(states)
        if len(distinct) == 1:
            return distinct.pop()
        if self.sets.keys().isdisjoint(distinct):
            return self._set(frozenset(distinct))
        return self._set(frozenset[int]().union(*[self.sets.get(state, (state,)) for state in distinct]))

    def _either(self, one: int, other: int) -> int:
        if one == other or other == _NOWHERE:
            return one
        key = (one, other)
        state = self.unions.get(key)
        if state is None:
            state = self.unions[key] = self._unite(key)
        return state

    def _set(self, elements: frozenset[int]) -> int:
        if len(elements) == 1:
            (state,) = elements
            return state
        self._count(len(elements))
        number = self.set_numbers.get(elements)
        if number is None:
            number = self.set_numbers[elements] = self._new_state()
            self.sets[number] = elements
        return number

    def _count(self, work: int) -> None:
        self.work += work
        if self.work > MAX_SET_SIZES:
            raise StateLimitError

    def _repeat(self, part: Language, minimum: int, maximum: int | None, following: int) -> int:
        if maximum is None:
            state = self._new_state()
            self.signposts.add(state)
            self.loops[state] = self._either(following, self.draw(part, state))
        else:
            state = following
            for _ in range(maximum - minimum):
                before, state = state, self._either(following, self.draw(part, state))
                if state == before:
                    break
        for _ in range(minimum):
            before, state = state, self.draw(part, state)
            if state == before:
                break
        return state

    def _separate(self, language: Separated, following: int) -> int:
        # By how many parts stand there (not counted further than either bound can tell): what comes next, once it
        # has been decided on all parts, on all but the last one ...
        minimum, maximum = language.minimum, language.maximum
        most = max(minimum, 1) if maximum is None else maximum
        states = [following if count >= minimum else _NOWHERE for count in range(most + 1)]

        def with_part(part: Language, count: int, after: int) -> int:
            state = self.draw(part, after)
            return self.draw(language.separator, state) if count else state

        def with_rest(rest: Language) -> None:
            for count in reversed(range(most + 1)):
                if maximum is None and (count == most or (count and language.may_repeat)):
                    loop = self._new_state()
                    self.signposts.add(loop)
                    self.loops[loop] = self._either(states[count], with_part(rest, count, loop))
                    states[count] = loop
                elif count < most:
                    states[count] = self._either(states[count], with_part(rest, count, states[count + 1]))

        if language.rest is not None:
            with_rest(language.rest)
        for number, (part, required) in reversed(list(enumerate(language.parts))):
            self._count(most + 1)
            taken = [
                with_part(part, count, states[min(count + 1, most)])
                if count < most or maximum is None
                else _NOWHERE
                for count in range(most + 1)
            ]
            states = taken if required else list(map(self._either, taken, states))
            if language.rest is not None and number in language.before:
                with_rest(language.rest)
        return states[0]

    def _embed(self, dfa: ByteDFA, leading: dict[int, int]) -> int:
        """An automaton's start, where some of its states lead on to those outside."""
        if dfa.dead == 0:
            return _NOWHERE
        start = self._numbers(dfa.dead)
        self._take(dfa.dead - len(dfa.ends))
        instead = dict.fromkeys(dfa.ends, _NOWHERE)
        for state, following in leading.items():
            instead[state] = following if state in instead else self._either(start + state, following)
        self.starts.append(start)
        self.automata.append((dfa.rows, instead))
        return instead.get(0, start)

    def _row(self, node: int) -> Row:
        """Where a node's bytes lead."""
        row = self.rows.get(node)
        if row is None:
            place = bisect.bisect(self.starts, node) - 1
            start, (rows, instead) = self.starts[place], self.automata[place]
            row = self.rows[node] = [
                (mask, instead.get(target, start + target)) for mask, target in rows[node - start]
            ]
        return row

    def _is_node(self, state: int) -> bool:
        return state not in self.sets and state not in self.signposts

    def _closed(self, state: int, *anchors: Anchor) -> int:
        """The nodes that can be reached without reading a byte, and anchors that the text's end may open."""
        if state not in self.signposts and self.signposts.isdisjoint(self.sets.get(state, ())):
            return state
        seen: set[int] = set()
        stack = [state]
        while stack:
            each = stack.pop()
            if each in seen:
                continue
            seen.add(each)
            if each in self.sets:
                stack += self.sets[each]
            elif each in self.loops:
                stack.append(self.loops[each])
            elif each in self.anchors and self.anchors[each][0] in anchors:
                stack.append(self.anchors[each][1])
        return self._set(frozenset(each for each in seen if self._is_node(each) or self._is_end(each)))

    def _is_end(self, state: int) -> bool:
        return state in self.anchors and self.anchors[state][0] is Anchor.END

    def _accepts(self, state: int, *anchors: Anchor) -> bool:
        if self.anchors or anchors:
            state = self._closed(state, Anchor.END, *anchors)
        return state == _END or _END in self.sets.get(state, ())

    def determinise(self, start: int) -> tuple[list[Row], list[bool]]:
        """The rows of a deterministic automaton whose state 0 is the start, and whether each state accepts."""
        # The start stands apart: only there does Anchor.START hold.
        states = [self._closed(start, Anchor.START)]
        accepting = [self._accepts(start, Anchor.START)]
        numbers: dict[int, int] = {} if self.anchors else {states[0]: 0}
        rows: list[Row] = []
        for state in states:
            row: list[tuple[Mask, int]] = []
            for mask, target in self._merged_row(self.sets[state]) if state in self.sets else self._row(state):
                number = numbers.get(target)
                if number is None:
                    closed = self._closed(target)
                    number = numbers.get(closed)
                    if number is None:
                        number = len(states)
                        if number > MAX_UNMERGED_STATES:
                            raise StateLimitError
                        states.append(closed)
                        accepting.append(self._accepts(closed))
                        numbers[closed] = number
                    numbers[target] = number
                row.append((mask, number))
            rows.append(row)
        return rows, accepting

    def _merged_row(self, nodes: frozenset[int]) -> Row:
        """The row of a set of nodes: wherever one of them leads."""
        targets: dict[Mask, list[int]] = {}
        for node in nodes:
            for mask, target in self.rows.get(node) or self._row(node):
                if mask in targets:
                    targets[mask].append(target)
                else:
                    targets[mask] = [target]
        covered = 0
        for mask in targets:
            if covered & mask:
                break
            covered |= mask
        else:
            return [(mask, self._unite(together)) for mask, together in targets.items()]
        pieces: list[tuple[Mask, list[int]]] = []
        for mask, together in targets.items():
            split: list[tuple[Mask, list[int]]] = []
            for piece, others in pieces:
                common = piece & mask
                if common:
                    split.append((common, others + together))
                    mask &= ~common
                    piece &= ~common
                if piece:
                    split.append((piece, others))
            if mask:
                split.append((mask, together))
            pieces = split
        return [(piece, self._unite(together)) for piece, together in pieces]


def _product(
    first: ByteDFA, second: ByteDFA, accepts: Callable[[bool, bool], bool], beyond_second: bool
) -> ByteDFA:
    """Both automata side by side; a pair of states accepts as `accepts` says.

    `beyond_second`: whether texts count for which only the second one is dead already.
    """
    rows: list[Row] = []
    one, two = _sides(first), _sides(second)
    width = second.dead + 1
    pairs = [0]
    numbers = {0: 0}
    work = 0
    # How two rows meet hangs on their sets of bytes alone, and of those there are few.
    meetings: dict[tuple[int, int], list[tuple[Mask, int, int]]] = {}
    for pair in pairs:
        left, right = divmod(pair, width)
        kinds = one.kind[left], two.kind[right]
        meeting = meetings.get(kinds)
        if meeting is None:
            meeting = meetings[kinds] = _meeting(one.masks[kinds[0]], two.masks[kinds[1]], beyond_second)
        targets, others = one.targets[left], two.targets[right]
        work += (len(targets) - 1) * len(others)
        if work > MAX_SET_SIZES:
            raise StateLimitError
        row: list[tuple[Mask, int]] = []
        for common, arc, other in meeting:
            reached = targets[arc] * width + others[other]
            number = numbers.get(reached)
            if number is None:
                number = numbers[reached] = len(pairs)
                if number > MAX_UNMERGED_STATES:
                    raise StateLimitError
                pairs.append(reached)
            row.append((common, number))
        rows.append(row)
    accepting_one, accepting_two = first.accepting.tolist(), second.accepting.tolist()
    return _limited(rows, [accepts(accepting_one[pair // width], accepting_two[pair % width]) for pair in pairs])


class _Sides:
    """An automaton as one side of a product, by states, the dead one included.

    - `kind`: the number of the sets of bytes that lead on from it, which `masks` has;
    - `targets`: where they lead, and the dead state behind them.
    """

    def __init__(self, dfa: ByteDFA) -> None:
        known: dict[tuple[Mask, ...], int] = {}
        rows = (*dfa.rows, ())
        self.kind = [known.setdefault(tuple([mask for mask, _ in row]), len(known)) for row in rows]
        self.masks = list(known)
        self.targets = [[*[target for _, target in row], dfa.dead] for row in rows]


# One is often a side of several products, one after the other.
_sides = lru_cache(maxsize=4)(_Sides)


def _meeting(
    masks: tuple[Mask, ...], others: tuple[Mask, ...], beyond_others: bool
) -> list[tuple[Mask, int, int]]:
    """The bytes that some of `masks` and some of `others` have in common, and the places of both.

    `beyond_others`: also what none of the others has, with -1 for its place.
    """
    found = []
    for place, mask in enumerate(masks):
        found += [(mask & other, place, beside) for beside, other in enumerate(others) if mask & other]
        if beyond_others and (beyond := reduce(lambda rest, other: rest & ~other, others, mask)):
            found.append((beyond, place, -1))
    return found


def _limited(rows: Sequence[Row], accepting: Sequence[bool]) -> ByteDFA:
    dfa = minimal(rows, accepting)
    if dfa.dead > MAX_STATES:
        raise StateLimitError
    return dfa
