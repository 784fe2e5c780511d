"""What tells the branches of a oneOf apart: whatever fulfils one of them must not fulfil another.

Where types, values, bounds or properties do, a branch is at most strengthened by what an object has or lacks.
Where nothing does, the caller takes the complement of the other branch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .dialects import Part, Schema
from .keywords import (
    IN_PLACE,
    TYPES,
    UNEVALUATED,
    bounds_of,
    declared_of,
    frozen,
    largest_of,
    required_of,
    smallest_of,
    spellings,
    types_of,
    values_of,
    without,
)
from .language import StateLimitError
from .negation import lacks
from .objects import member
from .places import Alternative, Aside, Place
from .references import resolve

if TYPE_CHECKING:
    from .compiler import Compiler


# How often two ways through the choices are held against each other.
MAX_COMPARISONS = 10_000

# A complement of more branches is taken only where nothing stricter will do.
MAX_BRANCHES = 3

# What a value is not held against when two ways are compared. What these lead to stands among the parts, but for
# the oneOf in question, which would exclude the value itself.
_NOT_COMPARED = (
    *IN_PLACE,
    *UNEVALUATED,
    *("oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies"),
)

_OBJECT = Aside({"type": "object"})
_NO_OBJECT = Aside({"type": sorted(TYPES - {"object"})})


@dataclass(frozen=True)
class Rivals:
    """The branches of a oneOf.

    - `tags`: of each one, the values that a property of its objects can have which all of them must have; None
      where they are not known.
    """

    branches: tuple[Schema, ...]
    tags: tuple[frozenset[Any] | None, ...]


def rivalry(compiler: Compiler, branches: tuple[Schema, ...], place: Place) -> Rivals:
    """The branches with what tells their objects apart at a glance: hundreds aren't held against each other."""
    look = replace(place, spare=1)
    objects = [_object_ways(compiler, branch, look) for branch in branches]
    names = dict.fromkeys(
        name for ways in itertools.islice(filter(None, objects), 3) for name in required_of(ways[0])
    )
    best: tuple[frozenset[Any] | None, ...] = (None,) * len(branches)
    for name in names:
        tags = tuple(None if ways is None else _tags(compiler, ways, name, look) for ways in objects)
        if tags.count(None) < best.count(None):
            best = tags
    return Rivals(branches, best)


def _object_ways(compiler: Compiler, branch: Schema, place: Place) -> list[Alternative] | None:
    """The ways to be an object and fulfil a branch; None if recursion hides some."""
    cuts = compiler.cuts
    ways = [parts for parts, _ in compiler.alternatives((branch,), place) if "object" in types_of(parts)]
    complete = compiler.cuts == cuts
    compiler.cuts = cuts
    return ways if complete else None


def _tags(compiler: Compiler, ways: list[Alternative], name: str, place: Place) -> frozenset[Any] | None:
    found: set[Any] = set()
    for parts in ways:
        values = settle(compiler, member(compiler, parts, name, place)) if name in required_of(parts) else None
        if values is None:
            return None
        found.update(map(frozen, values))
    return frozenset(found)


def exclude(
    compiler: Compiler, rivals: Rivals, index: int, parts: Alternative, place: Place
) -> Iterator[tuple[Alternative, list[Schema]]]:
    """One branch's `parts` in pieces, strengthened where that is all it takes to exclude another branch.

    With each piece come the branches that it may fulfil nevertheless.
    """
    types = types_of(parts)
    own = rivals.tags[index]
    mixed = "object" in types and types != {"object"}
    stricter = parts
    left: list[Schema] = []
    for other, (branch, tags) in enumerate(zip(rivals.branches, rivals.tags, strict=True)):
        told_apart = types == {"object"} and own is not None and tags is not None and not own & tags
        if other == index or told_apart:
            continue
        excluding = None if mixed and left else _exclude(compiler, branch, stricter, replace(place, spare=1))
        if excluding is None:
            left.append(branch)
        else:
            stricter = excluding
    if mixed and left:
        for kind in (_OBJECT, _NO_OBJECT):
            yield from exclude(compiler, rivals, index, (*parts, kind), place)
    else:
        yield stricter, left


def _exclude(compiler: Compiler, other: Schema, parts: Alternative, place: Place) -> Alternative | None:
    """`parts`, so that nothing that fulfils them fulfils the other branch; None where that takes more."""
    cuts = compiler.cuts
    names = tuple(declared_of(parts) | required_of(parts))
    for rival, _ in compiler.alternatives((other,), place):
        if _disjoint(compiler, parts, rival, place):
            continue
        few = len(compiler.complement(other, names)) <= MAX_BRANCHES
        exclusion = None if few else _exclusion(compiler, parts, rival, place)
        if exclusion is None:
            compiler.cuts = cuts
            return None
        parts = (*parts, exclusion)
    # Recursion may have hidden a way to fulfil it.
    complete = compiler.cuts == cuts
    compiler.cuts = cuts
    return parts if complete else None


def _exclusion(compiler: Compiler, parts: Alternative, rival: Alternative, place: Place) -> Part | None:
    """What an object must or must not have, so that it fulfils `parts` and not the rival; None if nothing."""
    if types_of(parts) != {"object"}:
        return None
    declared = declared_of(parts)
    missing = [name for name in required_of(rival) if name not in required_of(parts)]
    for name in missing:
        if name not in declared:
            return lacks(name)
    for name in declared:
        there = Aside({"required": [name]})
        if not _impossible(compiler, parts, name, place) and _disjoint(compiler, (*parts, there), rival, place):
            return there
    return lacks(missing[0]) if len(missing) == 1 else None


def _impossible(compiler: Compiler, parts: Alternative, name: str, place: Place) -> bool:
    """Whether it is certain that an object that fulfils `parts` lacks a property."""
    conjunction = member(compiler, parts, name, place)
    inside = place.inside(f".{name}", conjunction)
    return settle(compiler, conjunction) == [] or not compiler.alternatives(conjunction, inside)


def _disjoint(compiler: Compiler, one: Alternative, two: Alternative, place: Place) -> bool:
    """Whether it is certain that no value fulfils both."""
    compiler.comparisons += 1
    if compiler.comparisons > MAX_COMPARISONS:
        raise StateLimitError
    for first, second in ((one, two), (two, one)):
        values = values_of(first)
        if values is not None:
            plain = [without(part, *_NOT_COMPARED) for part in (*first, *second) if not isinstance(part, Aside)]
            return not any(compiler.is_valid(each, plain) for value in values for each in spellings(value))
    return all(_disjoint_as(compiler, kind, one, two, place) for kind in types_of(one) & types_of(two))


def _disjoint_as(compiler: Compiler, kind: str, one: Alternative, two: Alternative, place: Place) -> bool:
    for first, second in ((one, two), (two, one)):
        if kind in ("integer", "number"):
            high, low = bounds_of(first)[1], bounds_of(second)[0]
            if high is not None and low is not None and high < low:
                return True
        if kind == "array" and smallest_of(first, "maxItems", math.inf) < largest_of(second, "minItems"):
            return True
        if kind == "string" and smallest_of(first, "maxLength", math.inf) < largest_of(second, "minLength"):
            return True
        if kind == "object":
            for name in required_of(first):
                there, here = member(compiler, second, name, place), member(compiler, first, name, place)
                inside = place.inside(f".{name}", here)
                if there and all(
                    _disjoint(compiler, a, b, inside)
                    for (a, _), (b, _) in itertools.product(
                        compiler.alternatives(here, inside), compiler.alternatives(there, inside)
                    )
                ):
                    return True
    return False


def contradicts(compiler: Compiler, parts: Alternative) -> bool:
    """Whether a property must be there for which lists of values leave none; `parts` but the last do not.

    Of a chain of conditions on one property it leaves as many ways as there are values, not all their products.
    """
    last = parts[-1]
    if not last.keys() & {"properties", "required"}:
        return False
    touched = (last.get("properties", {}).keys() | last.get("required", ())) & required_of(parts).keys()
    return any(
        settle(compiler, tuple(part["properties"][name] for part in parts if name in part.get("properties", {})))
        == []
        for name in touched
    )


def settle(compiler: Compiler, conjunction: Sequence[Schema]) -> list[Any] | None:
    """The values that an enum or const leaves of all schemas; None where none of them lists any."""
    if not conjunction:
        return None
    key = tuple(map(id, conjunction))
    if key not in compiler.settled:
        values = settle(compiler, conjunction[:-1])
        unseen: Sequence[Schema] = conjunction[-1:]
        if values is None:
            values, unseen = _listed(compiler, conjunction[-1]), conjunction
        if values is not None:
            values = [
                value for value in values if any(compiler.is_valid(each, unseen) for each in spellings(value))
            ]
        compiler.settled[key] = (tuple(conjunction), values)
    return compiler.settled[key][1]


def _listed(compiler: Compiler, schema: Schema) -> list[Any] | None:
    """The values of the enum or const of a schema, or of what its $ref leads to."""
    while isinstance(schema, dict) and "$ref" in schema and values_of([schema]) is None:
        schema = resolve(compiler.root, schema["$ref"])[-1]
    if isinstance(schema, bool) or (compiler.refs_stand_alone and "$ref" in schema):
        return None
    return values_of([{keyword: schema[keyword] for keyword in schema.keys() & compiler.obeyed}])
