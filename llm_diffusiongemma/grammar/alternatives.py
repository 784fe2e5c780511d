"""The ways to fulfil all that is asked of a place, each without a choice left to make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .dialects import Part, Schema
from .keywords import (
    bounds_of,
    declared_of,
    largest_of,
    required_of,
    smallest_of,
    spellings,
    types_of,
    values_of,
    without,
)
from .language import StateLimitError
from .objects import member
from .places import LIMITS, Alternative, Place, refused
from .references import resolve

if TYPE_CHECKING:
    from .compiler import Compiler


# How often two ways through the choices are held against each other.
MAX_COMPARISONS = 10_000

# What these lead to is among the parts of every alternative.
IN_PLACE = ("$ref", "allOf", "anyOf")


@dataclass(frozen=True)
class Choice:
    """A value must fulfil one of the branches; exactly one where it is `exclusive` (oneOf)."""

    branches: tuple[Schema, ...]
    exclusive: bool = False


# What a place must fulfil besides.
Pending = Schema | Choice


def expand(
    compiler: Compiler, pending: Sequence[Pending], parts: Alternative, place: Place
) -> list[tuple[Alternative, Place]]:
    """The ways to fulfil `parts` and what is pending."""
    compiler.visit()
    if not pending:
        return [(parts, place)]
    first, *rest = pending
    if isinstance(first, Choice):
        return _choose(compiler, first, rest, parts, place)
    if first is False:
        return []
    if first is True:
        return expand(compiler, rest, parts, place)
    assert isinstance(first, dict)
    if "$ref" in first:
        reference = first["$ref"]
        if place.references.count(reference) >= compiler.limits.depth:
            compiler.cuts += 1
            compiler.lower("recursion", LIMITS[0].depth, compiler.limits.depth, place)
            return []
        if reference not in place.here:
            place = replace(place, here=(*place.here, reference))
        rest = [resolve(compiler.root, reference)[-1], *rest]
        if compiler.refs_stand_alone:
            return expand(compiler, rest, parts, place)
    # What another draft knows is a comment in this one.
    first = {keyword: value for keyword, value in first.items() if keyword in compiler.obeyed}
    parts = (*parts, first)
    if not types_of(parts):
        return []
    # Choices come last: what is the same in all branches is then looked at once.
    return expand(compiler, [*first.get("allOf", ()), *rest, *choices_of(first)], parts, place)


def _choose(
    compiler: Compiler, choice: Choice, rest: list[Pending], parts: Alternative, place: Place
) -> list[tuple[Alternative, Place]]:
    found = []
    for index, branch in enumerate(choice.branches):
        others = choice.branches[:index] + choice.branches[index + 1 :]
        for alternative, where in expand(compiler, [branch, *rest], parts, place):
            if choice.exclusive and values_of(alternative) is None:
                # A list of values is checked value by value, this keyword included.
                for other in others:
                    alternative = _exclude(compiler, other, alternative, place)
            found.append((alternative, where))
    return found


def _exclude(compiler: Compiler, other: Schema, parts: Alternative, place: Place) -> Alternative:
    """`parts`, strengthened where needed so that nothing that fulfils them fulfils the other branch."""
    cuts = compiler.cuts
    for rival, _ in compiler.alternatives((other,), place):
        if _disjoint(compiler, parts, rival, place):
            continue
        exclusion = _exclusion(compiler, parts, rival, place)
        if exclusion is None:
            raise refused("oneOf", "its branches may both be fulfilled", place, "Use anyOf")
        parts = (*parts, exclusion)
    if compiler.cuts != cuts:
        raise refused("oneOf", "its branches recurse before they can be told apart", place, "Use anyOf")
    return parts


def _exclusion(compiler: Compiler, parts: Alternative, rival: Alternative, place: Place) -> Part | None:
    """What an object must or must not have, so that it fulfils `parts` and not the rival; None if nothing."""
    if types_of(parts) != {"object"}:
        return None
    declared = declared_of(parts)
    missing = [name for name in required_of(rival) if name not in required_of(parts)]
    for name in missing:
        if name not in declared:
            return {"properties": {name: False}}
    for name in declared:
        if _disjoint(compiler, (*parts, {"required": [name]}), rival, place):
            return {"required": [name]}
    return {"properties": {missing[0]: False}} if missing else None


def _disjoint(compiler: Compiler, one: Alternative, two: Alternative, place: Place) -> bool:
    """Whether it is certain that no value fulfils both."""
    compiler.comparisons += 1
    if compiler.comparisons > MAX_COMPARISONS:
        raise StateLimitError
    for first, second in ((one, two), (two, one)):
        values = values_of(first)
        if values is not None:
            # What these lead to stands among the parts; the oneOf in question would exclude the value itself.
            plain = [without(part, *IN_PLACE, "oneOf") for part in (*first, *second)]
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


def choices_of(part: Part) -> Iterator[Choice]:
    """The choices that a schema leaves."""
    if "anyOf" in part:
        yield Choice(tuple(part["anyOf"]))
    if "oneOf" in part:
        yield Choice(tuple(part["oneOf"]), exclusive=len(part["oneOf"]) > 1)
    conditions = [part.get(keyword, {}) for keyword in ("dependentRequired", "dependentSchemas", "dependencies")]
    for name, consequence in itertools.chain(*(each.items() for each in conditions)):
        if isinstance(consequence, str):
            consequence = [consequence]
        if isinstance(consequence, list):
            consequence = {"required": [name, *consequence]}
        absent = {"properties": {name: False}}
        yield Choice((absent, {"allOf": [{"required": [name]}, consequence]}))
