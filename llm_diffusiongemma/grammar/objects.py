"""The objects of one way through the choices."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from . import scalars
from .dialects import Part, Schema
from .keywords import declared_of, largest_of, patterns_of, required_of, smallest_of
from .language import (
    EMPTY_TEXT,
    NOTHING,
    Branching,
    Language,
    Literal,
    Repetition,
    Separated,
    concatenate,
    embed,
    estimated_states,
    minimal_dfa,
    unite,
)
from .names import Region, every_name, regions, summed
from .negation import SOME_PROPERTY, SomeProperty
from .pattern import is_found
from .places import Alternative, Aside, Conjunction, Place, refused
from .references import resolve

if TYPE_CHECKING:
    from .compiler import Compiler


# By what the checksums of names are counted which have to be different, and what that may cost.
LARGEST_MODULUS = 13
MAX_DIFFERENT_STATES = 6000

# What may forbid a property that isn't listed, or count it.
_SAYS_OF_OTHERS = {
    "additionalProperties",
    "unevaluatedProperties",
    "patternProperties",
    "propertyNames",
    "maxProperties",
}

# The names of a region, and the values that they may have.
Entry = tuple[Region, Language]


def object_language(compiler: Compiler, parts: Alternative, place: Place) -> Language:
    """The objects that fulfil `parts`."""
    required = required_of(parts)
    least = largest_of(parts, "minProperties")
    # Counting is free where it can't matter.
    least = 0 if least <= len(required) else least
    most = smallest_of(parts, "maxProperties", None)
    names = _in_order(compiler, parts) | required
    members: list[tuple[Language, bool]] = []
    for name in names:
        conjunction = member(compiler, parts, name, place)
        value = compiler.language(conjunction, place.inside(f".{name}", conjunction))
        if value is not NOTHING:
            key = Literal(scalars.json_text(name))
            members.append((concatenate(key, compiler.layout.colon, value), name in required))
        elif name in required:
            return NOTHING
    if most is not None and most < max(least, len(required)):
        return NOTHING
    some = [part[SOME_PROPERTY] for part in parts if SOME_PROPERTY in part]
    if some:
        if len(some) > 1 or least > 1:
            raise refused(some[0].keyword, "what a not, if or oneOf asks for can't be counted", place)
        content = _containing(compiler, parts, members, names, some[0], most, place)
        return compiler.layout.enclosed(b"{}", content, place.nesting, False)
    missing = max(0, least - len(members))
    others = _others(compiler, parts, names, missing > 0, place) if most is None or most > len(required) else []
    if missing and not others:
        return NOTHING
    if least > 1 and not missing and most is not None:
        # The listed ones are enough, and to count both what is there and how many names there are is too much.
        others = []
    if not others:
        most = None if most is None or most >= len(members) else most
    elif most is not None:
        asked, most = most, min(most, max(least, len(required), compiler.limits.count))
        compiler.lower("maxProperties", asked, most, place)
    comma, _, _ = compiler.layout.gaps(place.nesting)
    rest = unite([_entry(compiler, embed(region.dfa), value) for region, value in others])
    if missing > 1 or (missing and members):
        listed = [each for language, _ in members for each in (language, comma)]
        more = Repetition(concatenate(comma, rest), 0, None if most is None else most - least)
        content = concatenate(*listed, _different(compiler, others, missing, comma, place), more)
    else:
        before = _positions(compiler, estimated_states(rest), len(members), most)
        content = Separated(tuple(members), rest, comma, max(least, 1), most, before, bool(others))
        if least <= 1 and most is None and _may_be_reordered(compiler, [language for language, _ in members]):
            content = unite([content, _in_any_order(members, rest, comma)])
    may_be_empty = least == 0 and not required
    if not others and most is None and _may_name_its_schema(compiler, parts, names, place):
        named = concatenate(Literal(b'"$schema"'), compiler.layout.colon, scalars.string())
        content = unite([content, concatenate(named, comma, content), named if may_be_empty else NOTHING])
    return compiler.layout.enclosed(b"{}", content, place.nesting, may_be_empty)


def _may_name_its_schema(compiler: Compiler, parts: Alternative, listed: Collection[str], place: Place) -> bool:
    """Whether a document may begin with the `$schema` that editors know it by, which few schemas list: where the
    schema is one of those that name their own."""
    return (
        not place.nesting
        and isinstance(compiler.root, dict)
        and "$schema" in compiler.root
        and "$schema" not in listed
        and not any(part.keys() & _SAYS_OF_OTHERS for part in parts)
    )


def _positions(compiler: Compiler, states: int, num_members: int, most: int | None) -> frozenset[int]:
    """Before which of the listed members others, of so many states, can stand; behind them they always can."""
    if most is not None or states > compiler.limits.others:
        return frozenset()
    return frozenset(range(num_members if states * num_members <= compiler.limits.others else 1))


def _may_be_reordered(compiler: Compiler, members: list[Language]) -> bool:
    """Whether any order costs little: a member is drawn for each set of others that may stand before it."""
    count = len(members)
    if count < 2 or 1 << count > compiler.limits.order:
        return False
    return sum(map(estimated_states, members)) << count - 1 <= compiler.limits.order


def _in_any_order(members: list[tuple[Language, bool]], rest: Language, comma: Language) -> Language:
    """The listed members, one at least, in any order, and behind the last of them the rest."""
    required = frozenset(number for number, (_, needed) in enumerate(members) if needed)
    end = Repetition(concatenate(comma, rest), 0, None) if rest is not NOTHING else EMPTY_TEXT

    @cache
    def following(done: frozenset[int]) -> Language:
        ways = [
            concatenate(*([comma] if done else []), member, following(done | {number}))
            for number, (member, _) in enumerate(members)
            if number not in done
        ]
        return unite([*([end] if done and required <= done else []), *ways])

    return following(frozenset())


def member(compiler: Compiler, parts: Alternative, name: str, place: Place) -> Conjunction:
    """What the value of a property must fulfil."""
    matched = {pattern for part in parts for pattern in patterns_of(part) if is_found(pattern, name)}
    found = _asked(compiler, parts, name, matched, place)
    allowed = all(compiler.is_valid(name, [part["propertyNames"]]) for part in parts if "propertyNames" in part)
    return found if allowed else (*found, False)


def _asked(
    compiler: Compiler, parts: Alternative, name: str | None, matched: Collection[str], place: Place
) -> Conjunction:
    """What the value of a property must fulfil whose name (None if it isn't listed) matches these patterns."""
    schemas: list[Schema] = []
    for part in parts:
        found = [schema for pattern, schema in patterns_of(part).items() if pattern in matched]
        if name in part.get("properties", {}):
            found.append(part["properties"][name])
        elif not found and "additionalProperties" in part:
            found.append(part["additionalProperties"])
        if "unevaluatedProperties" in part and not any(
            name in beside.get("properties", {})
            or _takes_additional_properties(compiler, beside)
            or any(pattern in matched for pattern in patterns_of(beside))
            for beside in in_place(compiler, part, parts, place)
        ):
            found.append(part["unevaluatedProperties"])
        schemas += found
    return tuple(schemas)


def _takes_additional_properties(compiler: Compiler, part: Part) -> bool:
    """Whether a property that a schema doesn't list counts as evaluated by it."""
    others = part.get("additionalProperties", False)
    # In draft 2019-09 jsonschema overlooks a schema there. What is written must be valid to it as well.
    return others is True if "additionalItems" in compiler.obeyed else others is not False


def in_place(compiler: Compiler, part: Part, parts: Alternative, place: Place) -> list[Part]:
    """Those of `parts` that `part` itself leads to, which is what its `unevaluated...` keywords look at."""
    return [
        beside
        for alternative, _ in compiler.alternatives((part,), place)
        if all(beside in parts for beside in alternative)
        for beside in alternative
        if not isinstance(beside, Aside)
    ]


def _in_order(compiler: Compiler, parts: Alternative) -> dict[str, None]:
    """The listed names in the order of the schema's text, in which an `allOf` or $ref stands where it is read."""
    names: dict[str, None] = {}

    seen: set[int] = set()

    def read(schema: Schema) -> None:
        if isinstance(schema, bool) or id(schema) in seen:
            return
        seen.add(id(schema))
        for keyword, value in schema.items():
            if keyword == "properties":
                names.update(dict.fromkeys(value))
            elif keyword == "allOf":
                for each in value:
                    read(each)
            elif keyword == "$ref":
                read(resolve(compiler.root, value)[-1])

    for part in parts:
        read(part)
    declared = declared_of(parts)
    return {name: None for name in names if name in declared}


def _containing(
    compiler: Compiler,
    parts: Alternative,
    members: list[tuple[Language, bool]],
    listed: Collection[str],
    some: SomeProperty,
    most: int | None,
    place: Place,
) -> Language:
    """The members, `most` of them, of objects of which one that isn't listed fulfils `some`.

    It comes behind the listed ones; where they are counted, behind those that are required, and before all others.
    """
    if most is not None:
        members = [each for each in members if each[1]]
    room = None if most is None else most - len(members) - 1
    if room is not None and room < 0:
        return NOTHING

    def entries(keys: Conjunction, value: Conjunction) -> Language:
        found = _others(compiler, parts, listed, True, place, keys, value)
        return unite([_entry(compiler, embed(region.dfa), language) for region, language in found])

    comma, _, _ = compiler.layout.gaps(place.nesting)
    asked = entries((some.name,), (some.value,))
    # Of equal names the last one counts: none but others of its kind may follow under its name.
    behind = unite([asked, entries(({"not": some.name},), ())])
    content = concatenate(asked, Repetition(concatenate(comma, behind), 0, room))
    if room is None:
        content = concatenate(Repetition(concatenate(entries((), ()), comma), 0, None), content)
    if not members:
        return content
    together = concatenate(Separated(tuple(members), None, comma, 1, None), comma, content)
    return together if any(needed for _, needed in members) else unite([content, together])


def _others(
    compiler: Compiler,
    parts: Alternative,
    listed: Collection[str],
    demanded: bool,
    place: Place,
    names_too: Conjunction = (),
    values_too: Conjunction = (),
) -> list[Entry]:
    """The properties that the schemas don't list.

    They are written where the schemas say something of them: by a pattern that matches, by what they allow to be
    additional or unevaluated, or by demanding more properties than they list. And if none is listed at all. What
    their names and values must fulfil besides can be given.
    """
    patterns = {pattern for part in parts for pattern in patterns_of(part)}
    said = demanded or any(
        part.get(keyword, False) is not False
        for part in parts
        for keyword in ("additionalProperties", "unevaluatedProperties")
    )
    beside = any(schema is not False for part in parts for schema in part.get("properties", {}).values())
    if not said and not patterns and beside:
        return []
    said_of_names = [part["propertyNames"] for part in parts if "propertyNames" in part]
    keys: Conjunction = (*said_of_names, *names_too)
    names = every_name()
    if keys:
        keys = ({"type": "string"}, *keys)
        names = minimal_dfa(compiler.language(keys, place.inside(".*", keys)))
    found: list[Entry] = []
    for region in regions(names, patterns, listed, place):
        compiler.made(region, region.dfa.dead)
        if region.matched or said or not patterns:
            conjunction = (*_asked(compiler, parts, None, region.matched, place), *values_too)
            inside = place.inside(".*", conjunction)
            if beside and conjunction and all(schema in (True, {}) for schema in conjunction):
                # That anything may stand beside what is listed says little more than nothing.
                inside = replace(inside, free=inside.free + 1)
            value = compiler.language(conjunction, inside)
            if value is not NOTHING:
                found.append((region, value))
    return found


def _entry(compiler: Compiler, key: Language, value: Language) -> Language:
    return concatenate(key, compiler.layout.colon, value)


def _different(compiler: Compiler, others: list[Entry], count: int, comma: Language, place: Place) -> Language:
    """So many of the other properties, no two of them with the same name: the checksums of their names differ."""
    if count == 1:
        return unite([_entry(compiler, embed(region.dfa), value) for region, value in others])
    states = sum(region.dfa.dead for region, _ in others)
    values = sum(estimated_states(value) for _, value in others)

    def cost(modulus: int) -> int:
        return sum(math.comb(modulus, used) for used in range(count)) * (modulus * states + values)

    # With the largest modulus the fewest names have the same sum.
    modulus = next((n for n in range(LARGEST_MODULUS, count - 1, -1) if cost(n) <= MAX_DIFFERENT_STATES), None)
    if modulus is None:
        reason = f"{count:,} properties that the schema doesn't list can't be kept different"
        raise refused("minProperties", reason, place, "Use a smaller one, list properties, or leave it out")
    sums = [summed(region.dfa, modulus) for region, _ in others]

    @cache
    def following(used: frozenset[int]) -> Language:
        last = len(used) == count - 1
        ways = []
        for (_, value), names in zip(others, sums, strict=True):
            ends = {each: ends for each, ends in enumerate(names.ends) if each not in used}
            value = concatenate(compiler.layout.colon, value)
            exits = [
                (states, value if last else concatenate(value, comma, following(used | {each})))
                for each, states in ends.items()
            ]
            ways.append(Branching(names.dfa, tuple(exits)))
        return unite(ways)

    return following(frozenset())
