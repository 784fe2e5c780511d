"""The ways to fulfil all that is asked of a place, each without a choice left to make."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .dialects import Part, Schema
from .exclusion import contradicts, exclude, rivalry
from .keywords import declared_of, required_of, types_of, values_of
from .negation import Negation, is_exact, lacks
from .places import LIMITS, Alternative, Aside, Place
from .references import resolve

if TYPE_CHECKING:
    from .compiler import Compiler


@dataclass(frozen=True)
class Choice:
    """A value must fulfil one of the branches; exactly one where it is `exclusive` (oneOf)."""

    branches: tuple[Schema, ...]
    exclusive: bool = False


# What a place must fulfil besides.
Pending = Schema | Choice | Negation


def expand(
    compiler: Compiler, pending: Sequence[Pending], parts: Alternative, place: Place
) -> list[tuple[Alternative, Place]]:
    """The ways to fulfil `parts` and what is pending."""
    compiler.visit()
    if not pending:
        return [(parts, place)]
    first, *rest = pending
    if isinstance(first, Negation):
        # They come last: what objects list is known then, and a list of values needs none of them.
        if any(not isinstance(other, Negation) for other in rest):
            return expand(compiler, [*rest, first], parts, place)
        return _negate(compiler, first.schema, rest, parts, place)
    if isinstance(first, Choice):
        return _choose(compiler, first, rest, parts, place)
    if first is False:
        return []
    if first is True:
        return expand(compiler, rest, parts, place)
    assert isinstance(first, dict)
    aside = isinstance(first, Aside)
    if "$ref" in first:
        followed = _follow(compiler, first["$ref"], compiler.limits.depth + place.spare, place)
        if followed is None:
            return []
        target, place = followed
        rest = [_aside(compiler, target) if aside else target, *rest]
        if compiler.refs_stand_alone:
            return expand(compiler, rest, parts, place)
    part = first if aside else _obeyed(compiler, first)
    parts = (*parts, part)
    if not types_of(parts) or contradicts(compiler, parts):
        return []
    together = list(part.get("allOf", ()))
    # Choices come last: what is the same in all branches is then looked at once.
    choices = list(choices_of(part))
    if aside:
        together = [_aside(compiler, each) for each in together]
        choices = [
            replace(choice, branches=tuple(_aside(compiler, each) for each in choice.branches))
            for choice in choices
        ]
    return expand(compiler, [*together, *rest, *choices, *_negations(part)], parts, place)


def _obeyed(compiler: Compiler, schema: Part) -> Part:
    """The keywords that the schema's draft knows. What another draft knows is a comment in this one."""
    return {keyword: value for keyword, value in schema.items() if keyword in compiler.obeyed}


def _aside(compiler: Compiler, schema: Schema) -> Schema:
    """The same without anything that counts as evaluated."""
    if isinstance(schema, bool | Aside):
        return schema
    return Aside(_obeyed(compiler, schema))


def _follow(compiler: Compiler, reference: str, depth: int, place: Place) -> tuple[Schema, Place] | None:
    """What a $ref leads to; None where it has led there too often."""
    if place.references.count(reference) >= depth:
        compiler.cuts += 1
        compiler.lower("recursion", LIMITS[0].depth, compiler.limits.depth, place)
        return None
    if reference not in place.here:
        place = replace(place, here=(*place.here, reference))
    return resolve(compiler.root, reference)[-1], place


def _choose(
    compiler: Compiler, choice: Choice, rest: list[Pending], parts: Alternative, place: Place
) -> list[tuple[Alternative, Place]]:
    # Where ways are only compared none may be missing.
    if not choice.exclusive or place.spare:
        return [found for branch in choice.branches for found in expand(compiler, [branch, *rest], parts, place)]
    rivals = rivalry(compiler, choice.branches, place)
    found: list[tuple[Alternative, Place]] = []
    excluded = 0
    for index, branch in enumerate(choice.branches):
        for alternative, where in expand(compiler, [branch, *rest], parts, place):
            if values_of(alternative) is not None:
                # A list of values is checked value by value, this keyword included.
                found.append((alternative, where))
                continue
            before = len(found)
            for piece, others in exclude(compiler, rivals, index, alternative, where):
                found += expand(compiler, [Negation(other) for other in others], piece, where)
            excluded += len(found) == before
    if excluded and not found:
        compiler.exhausted.add(place.path)
    return found


def _negate(
    compiler: Compiler, schema: Schema, rest: list[Pending], parts: Alternative, place: Place
) -> list[tuple[Alternative, Place]]:
    if values_of(parts) is not None or (place.spare and not is_exact(schema)):
        # A list of values is checked value by value, the keyword that this comes from included. Where ways are
        # only compared none may be missing.
        return expand(compiler, rest, parts, place)
    if isinstance(schema, dict) and "$ref" in schema:
        others = {} if compiler.refs_stand_alone else _obeyed(compiler, schema)
        if others.keys() <= {"$ref"}:
            # Seen from one level deeper than what is written itself, so that both end at different places.
            followed = _follow(compiler, schema["$ref"], compiler.limits.depth + 1, place)
            if followed is None:
                return []
            return expand(compiler, [Negation(followed[0]), *rest], parts, followed[1])
    names = tuple(declared_of(parts) | required_of(parts))
    branches = tuple(compiler.complement(schema, names))
    return _choose(compiler, Choice(branches), rest, parts, place)


def _negations(part: Part) -> Iterator[Negation]:
    if "not" in part:
        yield Negation(part["not"])


def choices_of(part: Part) -> Iterator[Choice]:
    """The choices that a schema leaves."""
    if "anyOf" in part:
        yield Choice(tuple(part["anyOf"]))
    if "oneOf" in part:
        yield Choice(tuple(part["oneOf"]), exclusive=len(part["oneOf"]) > 1)
    if "if" in part and part.keys() & {"then", "else"}:
        condition = part["if"]
        yield Choice(
            (
                {"allOf": [condition, part.get("then", True)]},
                {"allOf": [{"not": condition}, part.get("else", True)]},
            )
        )
    conditions: list[dict[str, Any]] = [
        part.get(keyword, {}) for keyword in ("dependentRequired", "dependentSchemas", "dependencies")
    ]
    for name, consequence in itertools.chain(*(each.items() for each in conditions)):
        if isinstance(consequence, str):
            consequence = [consequence]
        if isinstance(consequence, list):
            consequence = {"required": [name, *consequence]}
        yield Choice((lacks(name), {"allOf": [{"required": [name]}, consequence]}))
