"""The arrays of one way through the choices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..errors import ConstraintError
from . import numbers, scalars
from .dialects import Schema
from .distinct import REACHES, Checksum, Values, values_of_language
from .keywords import (
    bounds_of,
    frozen,
    item_schemas,
    largest_of,
    max_contains,
    min_contains,
    other_items,
    prefix_of,
    smallest_of,
    types_of,
    values_of,
)
from .language import (
    EMPTY_TEXT,
    MAX_STATES,
    NOTHING,
    Branching,
    Embedded,
    Language,
    Literal,
    Repetition,
    Separated,
    StateLimitError,
    concatenate,
    drawn_dfa,
    embed,
    optional,
    unite,
)
from .objects import in_place
from .places import Alternative, Conjunction, Place, refused

if TYPE_CHECKING:
    from .compiler import Compiler

# How far items are counted where more than their number counts. Each of them is a level of an expression.
MAX_COUNTED = 32


class Contained:
    """How many items have to fulfil a schema: from `least` to `most` (None: any number)."""

    def __init__(self, schema: Schema, least: int, most: int | None) -> None:
        self.least, self.most = least, most
        self.fulfilled: Conjunction = (schema,)
        # If all have to be counted the others must not fulfil it.
        self.missed: Conjunction = () if most is None else ({"not": schema},)

    def ways(self, count: int) -> list[tuple[Conjunction, int]]:
        """What the next item can be asked for after `count` that are counted, and the count that follows."""
        end = self.least if self.most is None else self.most
        return [(self.missed, count), *([(self.fulfilled, count + 1)] if count < end else [])]


# Ways to keep items different (see `Distinct`).
LEVELS = (
    (16, 8, 8, 8), (16, 8, 8), (8, 8, 8), (8, 4, 4, 4), (8, 8), (8, 4, 4), (4, 4, 4), (8, 4), (4, 4), (8,), (2, 2),
    (2,),
)  # fmt: skip

# What people write differs within each of `REACHES` in about such shares of all cases: words mostly early,
# addresses and paths late. Of it hangs what states are spent on. Numbers have few digits.
TEXTS_DIFFER = (1.0, 0.97, 0.9, 0.8, 0.6, 0.5)
NUMBERS_DIFFER = (1.0, 1.0, 1.0, 0.99, 0.97, 0.9)

# Where an item may end in most of its states, as a number may, these are drawn twice; so classes get less than all
# of the room. What may take up to so many times that is looked at, so many times.
ROOM_OF_CLASSES = 5 / 6
HOPED = 1.6
MOST_LOOKS = 6

# For items of which one is an array or object at most, whatever the others are.
MIXED_STATES = 4096

# So many automata are kept for the next array of the same items.
MAX_MADE = 32
_MADE: dict[Any, Language] = {}

# The way out where so many items can't be kept different.
_FEWER = "Use a smaller minItems, or leave it out"

# So many integers within bounds are as good as listed; and of so many values the first can be in any order where
# what follows them is drawn once for all that it follows.
FEW_VALUES = 100

# Strings whose characters are counted beside classes are no longer than this.
DISTINCT_LENGTH = 64


# How many items there are, but no more than matter, and the classes of those items.
Known = tuple[int, frozenset[int]]

# What matters of the items so far: their number, how many of each `Contained` there are, and how they are known.
_State = tuple[int, tuple[int, ...], Known]


@dataclass(frozen=True)
class Distinct:
    """How items are kept different: each is of a class, and no class comes twice.

    Behind the k-th item the classes of all items so far are known, modulo `levels[k - 1]`, each a divisor of the
    one before. Behind the last level only the largest class is, and the classes that follow are larger.
    """

    levels: tuple[int, ...]
    listed: Sequence[Language] | None = None
    """all values, each of a class of its own, if the schema lists them"""
    checksum: Checksum | None = None
    """else what their classes hang on"""
    parts: tuple[Values, ...] = ()
    """and what may stand in one place or another"""

    @property
    def most(self) -> int:
        """More items than this are never kept different."""
        return len(self.levels) - 1 + self.levels[-1]

    def states(self, size_of_class: Callable[[Values, int], int], least: int) -> int:
        """About how many keep `least` items different, by how many those of a class of some values have."""

        def size(count: int) -> int:
            return max((size_of_class(part, count) for part in self.parts), default=0)

        *free, last = self.levels
        known = [sum(math.comb(each, items) for items in range(1, k + 1)) for k, each in enumerate(free, 1)]
        in_order = last * max(1, least - len(free))
        return size(self.levels[0]) + sum(
            count * size(modulus) for count, modulus in zip([*known, in_order], self.levels, strict=True)
        )

    def written(self) -> float:
        """The share of lists that can be written, of items of random classes: six in ten of them pairs, three
        threes, one fours."""
        total, shares = 0.0, {(0, frozenset[int]()): 1.0}
        for weight in (0.0, 0.6, 0.3, 0.1):
            following: dict[Known, float] = {}
            for known, share in shares.items():
                modulus = self.modulus(known)
                for number in range(modulus):
                    if (then := self.follow(known, number)) is not None:
                        following[then] = following.get(then, 0.0) + share / modulus
            shares = following
            total += weight * sum(shares.values())
        return total

    def modulus(self, known: Known) -> int:
        """By how many classes the next item is told from those before."""
        return self.levels[max(0, known[0] - 1)]

    def follow(self, known: Known, number: int) -> Known | None:
        """What is known behind an item of a class; None if it can't come next."""
        count, used = known
        if count == len(self.levels):
            return None if number <= max(used) else (count, frozenset([number]))
        if count and number in used:
            return None
        used = frozenset(each % self.levels[count] for each in (*used, number))
        count += 1
        return count, frozenset([max(used)]) if count == len(self.levels) else used


@lru_cache(maxsize=64)
def _written(levels: tuple[int, ...]) -> float:
    return Distinct(levels).written()


def array_language(compiler: Compiler, parts: Alternative, place: Place) -> Language:
    """The arrays that fulfil `parts`."""
    least, asked = largest_of(parts, "minItems"), smallest_of(parts, "maxItems", None)
    contained = _contained(compiler, parts, place)
    least = max([least, *(each.least for each in contained)])
    if least > MAX_STATES:
        raise refused("minItems", f"{least:,} is too much to be counted", place)
    if asked is not None and asked < least:
        return NOTHING
    items = _Items(compiler, parts, place)
    unique = any(part.get("uniqueItems") for part in parts) and asked not in (0, 1)
    if unique or contained:
        content = _held_together(compiler, items, contained, unique, least, asked)
    else:
        content = _counted(compiler, items, least, asked)
    return compiler.layout.enclosed(b"[]", content, place.nesting, least == 0)


def _contained(compiler: Compiler, parts: Alternative, place: Place) -> list[Contained]:
    found = []
    for part in parts:
        least, most = min_contains(part), max_contains(part)
        if least > MAX_COUNTED:
            raise refused("minContains", f"more than {MAX_COUNTED} items can't be told from others", place)
        if most is not None and most > MAX_COUNTED:
            compiler.lower("maxContains", most, MAX_COUNTED, place)
            most = MAX_COUNTED
        if least > 0 or most is not None:
            found.append(Contained(part["contains"], least, most))
    if len(found) > 2:
        raise refused("contains", "it stands beside two others", place)
    return found


class _Items:
    """What stands at each index of an array."""

    def __init__(self, compiler: Compiler, parts: Alternative, place: Place) -> None:
        self.compiler, self.parts, self.place = compiler, parts, place
        self.fixed = max(len(prefix_of(part)) for part in parts) if parts else 0
        """From this index on all items are alike."""
        self.every: Conjunction = ()
        """What all items have to fulfil besides."""
        self.known: dict[tuple[int, tuple[int, ...]], Language] = {}

    def conjunction(self, index: int, extra: Conjunction = ()) -> Conjunction:
        """What an item has to fulfil, `extra` among it."""
        parts = self.parts
        schemas = item_schemas(parts, index) + self.every + extra
        for part in parts:
            if "unevaluatedItems" in part and not any(
                index < len(prefix_of(beside)) or other_items(beside) is not None
                for beside in in_place(self.compiler, part, parts, self.place)
            ):
                schemas = (*schemas, part["unevaluatedItems"])
        return schemas

    def language(self, index: int, extra: Conjunction = ()) -> Language:
        """Its texts; one object for equal ones."""
        index = min(index, self.fixed)
        key = (index, tuple(map(id, extra)))
        if key not in self.known:
            conjunction = self.conjunction(index, extra)
            self.known[key] = self.compiler.language(conjunction, self.place.inside("[]", conjunction))
        return self.known[key]


def _counted(compiler: Compiler, items: _Items, least: int, asked: int | None) -> Language:
    """The items of an array, one at least, where only their number counts."""
    place, fixed = items.place, items.fixed
    most = None if asked is None else min(asked, max(least, compiler.limits.count))
    rest = items.language(fixed) if most is None or most > fixed else NOTHING
    if asked is not None and most is not None and (rest is not NOTHING or most < fixed):
        compiler.lower("maxItems", asked, most, place)
    comma, _, _ = compiler.layout.gaps(place.nesting)
    if most == 0:
        return NOTHING
    if isinstance(rest, Embedded) and (least - fixed) * (rest.dfa.dead - 1) > MAX_STATES:
        # How many items are missing is known in each state of an item, so no drawing is needed to see it.
        raise StateLimitError
    if fixed == 0:
        return Separated((), rest, comma, max(least, 1), most)
    more = None if most is None else max(0, most - fixed)
    content: Language = Repetition(concatenate(comma, rest), max(0, least - fixed), more)
    if rest is NOTHING:
        content = EMPTY_TEXT if least <= fixed else NOTHING
    for index in reversed(range(fixed if most is None else min(fixed, most))):
        item = items.language(index)
        content = concatenate(comma, item, content) if index else concatenate(item, content)
        if index and index >= least:
            content = EMPTY_TEXT if content is NOTHING else optional(content)
    return content


def _held_together(
    compiler: Compiler, items: _Items, contained: list[Contained], unique: bool, least: int, asked: int | None
) -> Language:
    """The items of an array, one at least, where it counts what other ones are."""
    place = items.place
    if least > MAX_COUNTED:
        reason = f"it is more than {MAX_COUNTED}, beside uniqueItems or contains"
        raise refused("minItems", reason, place)
    distinct = _distinct(compiler, items, contained, least, asked) if unique else None
    most = asked
    comma, _, _ = compiler.layout.gaps(place.nesting)
    if distinct is not None and (asked is None or asked > distinct.most):
        most = None
    elif asked is not None:
        most = min(asked, max(least, min(compiler.limits.count, MAX_COUNTED)))
        compiler.lower("maxItems", asked, most, place)
    # How many items there are is counted as far as it matters.
    counted = max(least, items.fixed) if most is None else most
    known: dict[_State, Language] = {}

    def item_of(index: int, extra: Conjunction) -> Language:
        plain = items.language(index)
        try:
            return items.language(index, extra) if plain is not NOTHING else NOTHING
        except ConstraintError:
            if all(each.most is None for each in contained):
                raise
        raise refused("maxContains", "items that it counts can't be told from others", place)

    def steps(state: _State) -> Iterator[tuple[Language, _State | None]]:
        """The next item and the state behind it; None if what follows is part of it."""
        index, counts, before = state
        if index == most:
            return
        for ways in itertools.product(*(each.ways(count) for each, count in zip(contained, counts, strict=True))):
            extra: Conjunction = sum((conjunction for conjunction, _ in ways), ())
            after = (min(index + 1, counted), tuple(count for _, count in ways))
            item = item_of(index, extra)
            if distinct is None:
                yield item, (*after, before)
                continue
            modulus = distinct.modulus(before)
            following = [distinct.follow(before, number) for number in range(modulus)]
            if distinct.listed is not None or modulus == 1:
                members = [item] if distinct.listed is None else distinct.listed
                for one, known_then in zip(members, following, strict=True):
                    if known_then is not None:
                        yield one, (*after, known_then)
                continue
            assert distinct.checksum is not None
            classes = distinct.checksum.classes(item, modulus)
            exits = [
                (ends, behind((*after, known_then)))
                for ends, known_then in zip(classes.ends, following, strict=True)
                if known_then is not None and ends
            ]
            exits = [each for each in exits if each[1] is not NOTHING]
            if exits:
                yield Branching(classes.dfa, tuple(exits)), None

    def end(state: _State) -> Language:
        done = state[0] >= least and all(
            count >= each.least for each, count in zip(contained, state[1], strict=True)
        )
        return EMPTY_TEXT if done else NOTHING

    def in_order(count: int, first: int) -> Language:
        """Listed values from a number on, behind so many others."""
        assert distinct is not None
        assert distinct.listed is not None
        more = None if most is None else most - count
        members = tuple((member, False) for member in distinct.listed[first:])
        return Separated(members, None, comma, max(1, least - count), more)

    def behind(state: _State) -> Language:
        """What can follow an item."""
        if state not in known:
            if distinct is not None and distinct.listed is not None and state[2][0] == len(distinct.levels):
                others = in_order(state[0], max(state[2][1]) + 1) if state[0] != most else NOTHING
                known[state] = unite([end(state), concatenate(comma, others)])
                return known[state]
            ways = list(steps(state))
            others = unite(
                [
                    item if after is None else concatenate(item, behind(after))
                    for item, after in ways
                    if after != state
                ]
            )
            again = unite([item for item, after in ways if after == state])
            rest = unite([end(state), concatenate(comma, others)])
            if again is not NOTHING:
                rest = concatenate(Repetition(concatenate(comma, again), 0, None), rest)
            known[state] = rest
        return known[state]

    start: _State = (0, (0,) * len(contained), (0, frozenset()))

    def content() -> Language:
        return unite([item if after is None else concatenate(item, behind(after)) for item, after in steps(start)])

    if distinct is None:
        return content()
    # Where classes are many it is several times as large drawn as it is made.
    if distinct.listed is not None and len(distinct.levels) == 1:
        made = in_order(0, 0)
    elif distinct.listed is not None and len(distinct.listed) <= FEW_VALUES:
        made = embed(drawn_dfa(content()))
    elif distinct.listed is not None or distinct.levels == (1,):
        made = content()
    elif contained or items.fixed or items.language(0) is NOTHING:
        made = embed(drawn_dfa(content()))
    else:
        layout, level = compiler.layout, compiler.layout.level(place.nesting)
        made = _made((distinct.checksum, distinct.levels, least, most, layout, level), content)
    if made is NOTHING and least > 1:
        raise refused("uniqueItems", f"{least} of its items can't be kept different", place, _FEWER)
    return made


def _made(key: Any, content: Callable[[], Language]) -> Language:
    """The automaton of what is equal for equal keys: lists of tags come up again and again."""
    made = _MADE.get(key)
    if made is None:
        made = embed(drawn_dfa(content()))
        while len(_MADE) >= MAX_MADE:
            _MADE.pop(next(iter(_MADE)), None)
        _MADE[key] = made
    return made


def _distinct(
    compiler: Compiler, items: _Items, contained: list[Contained], least: int, asked: int | None
) -> Distinct:
    """How the items of an array are kept different."""
    place, most_states = items.place, compiler.limits.distinct
    every = [items.conjunction(index) for index in range(items.fixed + 1)]
    alternatives = [
        alternative
        for conjunction in every
        for alternative, _ in compiler.alternatives(conjunction, place.inside("[]", conjunction))
    ]
    kinds = frozenset[str]().union(*map(types_of, alternatives))
    wanted = len(LEVELS[0]) if asked is None else min(len(LEVELS[0]), asked)
    if kinds <= {"array", "object"}:
        if kinds:
            compiler.lower("uniqueItems", wanted, 1, place)
        return Distinct((1,))
    if len(every) == 1 and not contained:
        members = _listed(compiler, every[0], alternatives, kinds)
        if members is not None:
            count = max(1, len(members))
            wanted = count if asked is None else min(count, asked)
            free = _free_items(members, wanted, most_states)
            compiler.lower("uniqueItems", wanted, free, place)
            return Distinct((count,) * free, members)
    if kinds & {"array", "object"}:
        most_states = min(most_states, MIXED_STATES)
    lengths = [smallest_of(each, "maxLength", 0) for each in alternatives if "string" in types_of(each)]
    if lengths and min(lengths) > 0 and max(lengths) > DISTINCT_LENGTH:
        given = max(DISTINCT_LENGTH, *(largest_of(each, "minLength") for each in alternatives))
        items.every = ({"maxLength": given},)
        for length in sorted(set(lengths)):
            compiler.lower("maxLength", length, given, place.inside("[]", every[-1]))
    if items.fixed and items.language(items.fixed) is NOTHING:
        asked = items.fixed if asked is None else min(asked, items.fixed)
    room, looks = ROOM_OF_CLASSES * most_states, 0
    for distinct in _ways_to_tell_apart(_languages(items, contained), "string" in kinds, asked):
        assert distinct.checksum is not None
        if least > distinct.most:
            continue
        states = distinct.states(distinct.checksum.most_of_class, least)
        if room < states <= HOPED * room and looks < MOST_LOOKS:
            looks += 1
            states = distinct.states(distinct.checksum.size_of_class, least)
        if states <= room:
            compiler.lower("uniqueItems", wanted, len(distinct.levels), place)
            return distinct
    if least > 1:
        raise refused("uniqueItems", f"{least} of its items can't be kept different", place, _FEWER)
    compiler.lower("uniqueItems", wanted, 1, place)
    return Distinct((1,))


def _languages(items: _Items, contained: list[Contained]) -> list[Language]:
    """All that an item can be, by where it stands and by what it counts for."""
    found: list[Language] = []
    for index, ways in itertools.product(
        range(items.fixed + 1), itertools.product(*((each.missed, each.fulfilled) for each in contained))
    ):
        # One that can't be guaranteed is refused where it is needed.
        with suppress(ConstraintError):
            found.append(items.language(index, sum(ways, ())))
    return list(dict.fromkeys(each for each in found if each is not NOTHING))


def _ways_to_tell_apart(languages: list[Language], texts: bool, asked: int | None) -> list[Distinct]:
    """From the one on that lets most lists be written."""
    try:
        values = values_of_language(unite(languages))
        parts = tuple(dict.fromkeys(map(values_of_language, languages)))
    except StateLimitError:
        return []
    ways: dict[tuple[int, tuple[int, ...]], tuple[float, Distinct]] = {}
    for reach, share in zip(REACHES, TEXTS_DIFFER if texts else NUMBERS_DIFFER, strict=True):
        for levels in LEVELS:
            way = share * _written(levels[:asked]), Distinct(levels[:asked], None, Checksum(values, reach), parts)
            # Where a reach has all that a further one has, it is the same.
            ways.setdefault((int(values.within(reach).sum()), levels[:asked]), way)
    return [distinct for _, distinct in sorted(ways.values(), key=lambda way: -way[0])]


def _listed(
    compiler: Compiler, conjunction: Conjunction, alternatives: Sequence[Alternative], kinds: frozenset[str]
) -> list[Language] | None:
    """The values that an item can be, if they are listed."""
    listed = [values_of(alternative) or _few_integers(alternative) for alternative in alternatives]
    if kinds <= {"null", "boolean"}:
        listed = [[None, False, True]]
    if None in listed:
        return None
    # By Python's equality, which is coarser than JSON schema's: 1 is True.
    distinct: dict[Any, Any] = {}
    for value in itertools.chain(*(values for values in listed if values is not None)):
        if compiler.is_valid(value, conjunction):
            distinct.setdefault(frozen(value), value)
    return [scalars.literal(value) for value in distinct.values()]


def _few_integers(parts: Alternative) -> list[int] | None:
    """The integers within bounds, if nothing but few of them is allowed."""
    bounds = numbers.Bounds(*bounds_of(parts))
    first, last = bounds.least_integer(), bounds.most_integer()
    if types_of(parts) != {"integer"} or first is None or last is None:
        return None
    return list(range(first, last + 1)) if last - first < FEW_VALUES else None


def _free_items(members: Sequence[Language], wanted: int, most_states: int) -> int:
    """How many of the values can come first in any order, of `wanted`."""
    count, free = len(members), 1
    length = max(len(member.text) for member in members if isinstance(member, Literal)) if members else 0
    # Behind any so many values less one: which ones they are, and which of them was the last.
    sets, lasts = 1, count
    while free < wanted:
        more = math.comb(count, free)
        sets, lasts = sets + more, lasts + free * more
        if sets * count + lasts * length > most_states:
            break
        free += 1
    return free
