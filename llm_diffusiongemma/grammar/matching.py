"""Trees of regular expressions → deterministic automata over characters.

One automaton serves both sides: the compiler takes all of its states, the judge only those that a text leads
through. So they can't disagree about a pattern.

A nondeterministic automaton is drawn of the tree, whose moves read characters; those that no part of the pattern
tells apart are one class. A *configuration* is one of its states together with what it owes: assertions about all
that follows, each a state of the deterministic automaton that must (or must not) accept the rest of the text. So a
look-ahead needs no more than that the automaton of its own goes along, wherever it stands, also inside of a
repetition. What came before is known at each place: a look-behind goes along from the start of the text, as the
*context*. A state of the deterministic automaton is a context and all configurations that are possible there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from .characters import EVERY_CHARACTER, MAX_CODE_POINT, Ranges
from .expression import ANYTHING, Ahead, Behind, Characters, Choice, Node, Repeated, Sequence, Start
from .language import StateLimitError

# States of the nondeterministic automaton.
MAX_STATES_DRAWN = 65_536

# Moves and configurations that are looked at, each time one is: a second's worth.
MAX_WORK = 800_000

# What a configuration owes: states of the deterministic automaton, and whether they must accept what follows.
Debts = frozenset[tuple[int, bool]]
Configuration = tuple[int, Debts]

# States of the nondeterministic automaton: whatever follows is accepted; nothing may follow.
_FOUND, _END = 0, 1

_NO_DEBTS: Debts = frozenset()
_ANYTHING_FOLLOWS = frozenset({(_FOUND, _NO_DEBTS)})


class Classes:
    """The characters of a pattern, those that it doesn't tell apart as one class."""

    def __init__(self, sets: Iterable[Ranges]) -> None:
        sets = list(dict.fromkeys(sets))
        self.starts = sorted({0, *(edge for ranges in sets for pair in ranges for edge in (pair[0], pair[1] + 1))})
        if self.starts[-1] > MAX_CODE_POINT:
            self.starts.pop()
        members: list[list[int]] = [[] for _ in self.starts]
        work = 0
        for number, ranges in enumerate(sets):
            for first, last in ranges:
                places = range(bisect_right(self.starts, first) - 1, bisect_right(self.starts, last))
                work += len(places)
                if work > MAX_WORK:
                    raise StateLimitError
                for place in places:
                    members[place].append(number)
        numbers: dict[tuple[int, ...], int] = {}
        self.class_at = [numbers.setdefault(tuple(each), len(numbers)) for each in members]
        self.count = len(numbers)
        self.of_set: dict[Ranges, tuple[int, ...]] = dict.fromkeys(sets, ())
        for key, number in numbers.items():
            for each in key:
                self.of_set[sets[each]] += (number,)

    def of(self, point: int) -> int:
        """The class of a code point."""
        return self.class_at[bisect_right(self.starts, point) - 1]

    def ranges(self) -> list[Ranges]:
        """The characters of each class."""
        found: list[list[tuple[int, int]]] = [[] for _ in range(self.count)]
        ends = [*self.starts[1:], MAX_CODE_POINT + 1]
        for first, end, number in zip(self.starts, ends, self.class_at, strict=True):
            found[number].append((first, end - 1))
        return [tuple(each) for each in found]


class _Condition(NamedTuple):
    """What must hold where nothing is read."""

    kind: Literal["start", "behind", "ahead"]
    number: int
    """Of the look-behind, or the state where what is looked for ahead begins."""
    wanted: bool


class Matcher:
    """The deterministic automaton of a tree, made as far as it is asked for.

    Its texts are those that the tree matches as a whole or, if `anywhere`, in which it is found. Everything raises
    `StateLimitError` for what takes too long.
    """

    def __init__(self, tree: Node, anywhere: bool = False) -> None:
        if anywhere:
            tree = _led_up_to(tree)
        self.classes = Classes([EVERY_CHARACTER, *_sets(tree)])
        self.work = 0
        # The nondeterministic automaton, by state: what it reads and where that leads; where it may go without
        # reading, and on which condition.
        self.reads: list[tuple[tuple[int, ...], int] | None] = []
        self.skips: list[list[tuple[_Condition | None, int]]] = []
        self.behind: list[int] = []
        self.knows_start = False
        self.drawn: dict[Node, int] = {}
        self._new_state(self.classes.of_set[EVERY_CHARACTER], _FOUND)
        self._new_state()
        entry = self._draw(tree, _FOUND if anywhere else _END)

        # Contexts: whether this is the start, and where each look-behind is.
        self.contexts: list[tuple[bool, tuple[frozenset[int], ...]]] = []
        self.context_numbers: dict[tuple[bool, tuple[frozenset[int], ...]], int] = {}
        self.context_rows: dict[int, list[int]] = {}
        self.closures: dict[tuple[int, int], frozenset[Configuration]] = {}
        # The deterministic automaton, by state. A class that leads nowhere isn't in the row.
        self.states: list[tuple[int, frozenset[Configuration]]] = []
        self.numbers: dict[tuple[int, frozenset[Configuration]], int] = {}
        self.rows: dict[int, dict[int, int]] = {}
        self.payments: dict[tuple[Debts, int], Debts | None] = {}
        first = self._context(True, tuple(self._closure_behind([each], True) for each in self.behind))
        self.start = self._state(first, self._closure(entry, first))

    def matches(self, text: str) -> bool:
        """Whether a text is one of the automaton's."""
        self.work = 0
        state = self.start
        for character in text:
            following = self._row(state).get(self.classes.of(ord(character)))
            if following is None:
                return False
            if following == state and self._surely(state):
                return True
            state = following
        return self._accepts(state)

    def explore(self, most: int) -> tuple[list[dict[int, int]], list[bool]]:
        """For each state, the start first, where the classes lead that lead anywhere, and whether it accepts.

        Raises `StateLimitError` beyond so many states.
        """
        self.work = 0
        places = {self.start: 0}
        order = [self.start]
        rows: list[dict[int, int]] = []
        while len(rows) < len(order):
            row: dict[int, int] = {}
            for number, target in self._row(order[len(rows)]).items():
                if target not in places:
                    if len(order) == most:
                        raise StateLimitError
                    places[target] = len(order)
                    order.append(target)
                row[number] = places[target]
            rows.append(row)
        return rows, [self._accepts(state) for state in order]

    def _count(self, work: int) -> None:
        self.work += work
        if self.work > MAX_WORK:
            raise StateLimitError

    def _new_state(self, classes: tuple[int, ...] = (), following: int = -1) -> int:
        if len(self.reads) == MAX_STATES_DRAWN:
            raise StateLimitError
        self.reads.append((classes, following) if classes else None)
        self.skips.append([])
        return len(self.reads) - 1

    def _skip(self, *targets: int, condition: _Condition | None = None) -> int:
        state = self._new_state()
        self.skips[state] += [(condition, target) for target in targets]
        return state

    def _draw(self, node: Node, following: int) -> int:
        """Draw a node in front of the state that follows it, and return where it begins."""
        match node:
            case Characters(ranges):
                return self._new_state(self.classes.of_set[ranges], following)
            case Sequence(parts):
                for part in reversed(parts):
                    following = self._draw(part, following)
                return following
            case Choice(branches):
                return self._skip(*(self._draw(branch, following) for branch in branches))
            case Repeated(part, minimum, None):
                loop = self._skip(following)
                entry = self._draw(part, loop)
                self.skips[loop].append((None, entry))
                for _ in range(minimum - 1):
                    entry = self._draw(part, entry)
                return entry if minimum else loop
            case Repeated(part, minimum, maximum):
                assert maximum is not None
                entry = following
                for _ in range(maximum - minimum):
                    entry = self._skip(self._draw(part, entry), following)
                for _ in range(minimum):
                    entry = self._draw(part, entry)
                return entry
            case Start():
                self.knows_start = True
                return self._skip(following, condition=_Condition("start", 0, True))
            case Ahead(part, wanted):
                if part not in self.drawn:
                    self.drawn[part] = self._draw(part, _FOUND)
                return self._skip(following, condition=_Condition("ahead", self.drawn[part], wanted))
            case Behind(part, wanted):
                if part not in self.drawn:
                    self.behind.append(self._draw(_led_up_to(part), _END))
                    self.drawn[part] = len(self.behind) - 1
                return self._skip(following, condition=_Condition("behind", self.drawn[part], wanted))

    def _context(self, at_start: bool, behind: tuple[frozenset[int], ...]) -> int:
        context = (at_start and self.knows_start, behind)
        number = self.context_numbers.setdefault(context, len(self.contexts))
        if number == len(self.contexts):
            self.contexts.append(context)
        return number

    def _contexts_after(self, context: int) -> list[int]:
        """The context behind each class of characters."""
        if context not in self.context_rows:
            row: list[int] = []
            for number in range(self.classes.count):
                behind: list[frozenset[int]] = []
                for states in self.contexts[context][1]:
                    reads = [self.reads[state] for state in states]
                    reached = [each[1] for each in reads if each is not None and number in each[0]]
                    behind.append(self._closure_behind(reached, False))
                row.append(self._context(False, tuple(behind)))
            self.context_rows[context] = row
        return self.context_rows[context]

    def _closure_behind(self, states: Iterable[int], at_start: bool) -> frozenset[int]:
        """All states of look-behinds that can be reached without reading."""
        seen = set(states)
        stack = list(seen)
        while stack:
            for condition, target in self.skips[stack.pop()]:
                if (condition is None or at_start) and target not in seen:
                    seen.add(target)
                    stack.append(target)
        self._count(len(seen))
        return frozenset(state for state in seen if not self.skips[state])

    def _closure(self, state: int, context: int) -> frozenset[Configuration]:
        """All configurations that can be reached without reading."""
        known = self.closures.get((state, context))
        if known is not None:
            return known
        first: Configuration = (state, _NO_DEBTS)
        seen = {first}
        stack = [first]
        while stack:
            at, debts = stack.pop()
            for condition, target in self.skips[at]:
                owed = debts if condition is None else self._owed(condition, debts, context)
                if owed is not None and (target, owed) not in seen:
                    seen.add((target, owed))
                    stack.append((target, owed))
        self._count(len(seen))
        found = frozenset(each for each in seen if not self.skips[each[0]])
        self.closures[state, context] = found
        return found

    def _owed(self, condition: _Condition, debts: Debts, context: int) -> Debts | None:
        """What is owed behind a condition; None where it doesn't hold."""
        kind, number, wanted = condition
        at_start, behind = self.contexts[context]
        if kind != "ahead":
            return debts if (at_start if kind == "start" else _END in behind[number]) == wanted else None
        return self._add(debts, self._state(context, self._closure(number, context)), wanted)

    def _add(self, debts: Debts, state: int, wanted: bool) -> Debts | None:
        surely = self._surely(state)
        if surely is not None:
            return debts if surely == wanted else None
        return None if (state, not wanted) in debts else debts | {(state, wanted)}

    def _surely(self, state: int) -> bool | None:
        """Whether a state accepts whatever follows; None if that depends."""
        configurations = self.states[state][1]
        return False if not configurations else True if configurations == _ANYTHING_FOLLOWS else None

    def _state(self, context: int, configurations: frozenset[Configuration]) -> int:
        if configurations >= _ANYTHING_FOLLOWS:
            configurations = _ANYTHING_FOLLOWS
        elif len({at for at, _ in configurations}) < len(configurations):
            configurations = self._cheapest(configurations)
        if not configurations or configurations is _ANYTHING_FOLLOWS:
            # What came before makes no difference any more.
            context = 0
        state = (context, configurations)
        number = self.numbers.setdefault(state, len(self.states))
        if number == len(self.states):
            self.states.append(state)
        return number

    def _cheapest(self, configurations: frozenset[Configuration]) -> frozenset[Configuration]:
        """Without those that another one of the same state owes less than."""
        found: dict[int, list[Debts]] = {}
        for state, debts in sorted(configurations, key=lambda each: len(each[1])):
            kept = found.setdefault(state, [])
            self._count(len(kept))
            if not any(less <= debts for less in kept):
                kept.append(debts)
        return frozenset((state, debts) for state, kept in found.items() for debts in kept)

    def _row(self, state: int) -> dict[int, int]:
        """The states that the classes lead to from a state."""
        if state in self.rows:
            return self.rows[state]
        context, configurations = self.states[state]
        after = self._contexts_after(context)
        targets: dict[int, list[frozenset[Configuration]]] = {}
        for at, debts in configurations:
            reads = self.reads[at]
            if reads is None:
                continue
            classes, following = reads
            self._count(len(classes))
            for number in classes:
                reached = self._closure(following, after[number])
                if debts:
                    reached = self._still_owing(reached, debts, number)
                targets.setdefault(number, []).append(reached)
        row: dict[int, int] = {}
        for number, parts in targets.items():
            self._count(sum(map(len, parts)))
            target = self._state(after[number], parts[0].union(*parts[1:]))
            if self._surely(target) is not False:
                row[number] = target
        self.rows[state] = row
        return row

    def _still_owing(
        self, configurations: frozenset[Configuration], debts: Debts, number: int
    ) -> frozenset[Configuration]:
        """The configurations with what is still owed when a character of the class has been read."""
        if (debts, number) not in self.payments:
            self.payments[debts, number] = self._paid(debts, number)
        owed = self.payments[debts, number]
        if not owed:
            return frozenset() if owed is None else configurations
        self._count(len(configurations))
        contrary = {(state, not wanted) for state, wanted in owed}
        return frozenset((at, own | owed) for at, own in configurations if own.isdisjoint(contrary))

    def _paid(self, debts: Debts, number: int) -> Debts | None:
        """What is left of debts behind a character of the class; None where one can't be paid any more."""
        owed: Debts | None = _NO_DEBTS
        for state, wanted in debts:
            following = self._row(state).get(number)
            if following is not None and owed is not None:
                owed = self._add(owed, following, wanted)
            elif wanted:
                return None
        return owed

    def _accepts(self, state: int) -> bool:
        return any(
            at in (_FOUND, _END) and all(self._accepts(owed) == wanted for owed, wanted in debts)
            for at, debts in self.states[state][1]
        )


def _led_up_to(tree: Node) -> Node:
    """The tree behind any text, unless only the start can stand before it."""
    return tree if _begins_at_start(tree) else Sequence((ANYTHING, tree))


def _begins_at_start(node: Node) -> bool:
    match node:
        case Start():
            return True
        case Sequence(parts):
            return bool(parts) and _begins_at_start(parts[0])
        case Choice(branches):
            return all(map(_begins_at_start, branches))
        case Repeated(part, minimum, _):
            return minimum > 0 and _begins_at_start(part)
    return False


def _sets(node: Node) -> Iterator[Ranges]:
    """The sets of characters in a tree."""
    match node:
        case Characters(ranges):
            yield ranges
        case Sequence(parts) | Choice(parts):
            for part in parts:
                yield from _sets(part)
        case Repeated(part) | Ahead(part) | Behind(part):
            yield from _sets(part)
