"""The ways to fulfil all that is asked of a place, each without a choice left to make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .dialects import Part, Schema
from .exclusion import contradicts, exclude, rivalry
from .keywords import UNEVALUATED, declared_of, required_of, types_of, values_of
from .negation import Negation, is_exact, lacks
from .places import Alternative, Aside, Place
from .recursion import Passed
from .references import resolve

if TYPE_CHECKING:
    from .compiler import Compiler


# Where there may be more ways than this it is asked whether choices depend on each other.
MAX_WAYS = 8

# What may decide in which order items come.
ORDERED = {"contains", "uniqueItems"}


@dataclass(frozen=True)
class Choice:
    """A value must fulfil one of the branches; exactly one where it is `exclusive` (oneOf)."""

    branches: tuple[Schema, ...]
    exclusive: bool = False


# What a place must fulfil besides.
Pending = Schema | Choice | Negation


@dataclass(frozen=True)
class Gathered:
    """What a place must fulfil in any case, and the choices that are left; negations come last."""

    parts: Alternative
    choices: tuple[Choice | Negation, ...]
    place: Place


def expand(
    compiler: Compiler, pending: Sequence[Pending], parts: Alternative, place: Place
) -> list[tuple[Alternative, Place]]:
    """The ways to fulfil `parts` and what is pending."""
    gathered = gather(compiler, pending, parts, place)
    if gathered is None:
        return []
    if not gathered.choices:
        return [(gathered.parts, gathered.place)]
    first, *rest = gathered.choices
    if isinstance(first, Choice):
        return _choose(compiler, first, rest, gathered.parts, gathered.place)
    return _negate(compiler, first.schema, rest, gathered.parts, gathered.place)


def gather(compiler: Compiler, pending: Sequence[Pending], parts: Alternative, place: Place) -> Gathered | None:
    """What follows from `parts` and what is pending before anything is chosen; None if nothing fulfils it."""
    schemas = [each for each in pending if isinstance(each, bool | dict)]
    # Choices come last: what is the same in all branches is then looked at once. Negations come after them: what
    # objects list is known then, and a list of values needs none of them.
    choices = [each for each in pending if isinstance(each, Choice)]
    negations = [each for each in pending if isinstance(each, Negation)]
    if not schemas:
        compiler.visit()
    while schemas:
        compiler.visit()
        schema = schemas.pop(0)
        if schema is False:
            return None
        if schema is True:
            continue
        assert isinstance(schema, dict)
        aside = isinstance(schema, Aside)
        if "$ref" in schema:
            followed = _follow(compiler, schema["$ref"], compiler.limits.depth + place.spare, place)
            if followed is None:
                return None
            target, place = followed
            schemas.insert(0, _aside(compiler, target) if aside else target)
            if compiler.refs_stand_alone:
                continue
        part = schema if aside else _obeyed(compiler, schema)
        parts = (*parts, part)
        if not types_of(parts) or contradicts(compiler, parts):
            return None
        found = list(choices_of(part))
        together = list(part.get("allOf", ()))
        if aside:
            together = [_aside(compiler, each) for each in together]
            found = [
                replace(choice, branches=tuple(_aside(compiler, each) for each in choice.branches))
                for choice in found
            ]
        schemas[:0] = together
        choices += found
        if "not" in part:
            only = _only_way(compiler, part["not"])
            if only is None:
                negations.append(Negation(part["not"]))
            else:
                schemas.append(only)
    return Gathered(parts, (*choices, *negations), place)


def _only_way(compiler: Compiler, schema: Schema) -> Schema | None:
    """The complement of a schema, where it leaves no choice and can be told before properties are known."""
    if not is_exact(schema):
        return None
    branches = compiler.complement(schema, ())
    return branches[0] if len(branches) == 1 else None


def independent(
    compiler: Compiler, conjunction: Sequence[Schema], place: Place
) -> list[list[tuple[Alternative, Place]]]:
    """Choices that can be made each by itself: the ways to fulfil the conjunction but for all other choices.

    A value that is written by each of them fulfils the conjunction. Empty where there is nothing to gain, or
    something to lose: where one choice decides what is written at all for another one.
    """
    gathered = gather(compiler, conjunction, (), place)
    if gathered is None or values_of(gathered.parts) is not None:
        return []
    base, where = gathered.parts, gathered.place
    sizes = [len(each.branches) for each in gathered.choices if isinstance(each, Choice)]
    if math.prod(sizes) <= MAX_WAYS or max(sizes) == math.prod(sizes):
        return []
    if any(part.keys() & UNEVALUATED for part in base):
        return []
    groups = [expand(compiler, [choice], base, where) for choice in gathered.choices]
    known = declared_of(base) | required_of(base)
    for group in groups:
        for parts, _ in group:
            own = parts[len(base) :]
            if (declared_of(own) | required_of(own)).keys() - known.keys():
                return []
            if values_of(own) is not None or any(part.keys() & ORDERED for part in own):
                return []
    return groups


def _obeyed(compiler: Compiler, schema: Part) -> Part:
    """The keywords that the schema's draft knows. What another draft knows is a comment in this one."""
    return {keyword: value for keyword, value in schema.items() if keyword in compiler.obeyed}


def _aside(compiler: Compiler, schema: Schema) -> Schema:
    """The same without anything that counts as evaluated."""
    if isinstance(schema, bool | Aside):
        return schema
    return Aside(_obeyed(compiler, schema))


def _follow(compiler: Compiler, reference: str, depth: int, place: Place) -> tuple[Schema, Place] | None:
    """What a $ref leads to; None where it has led back too often."""
    rank = compiler.ranks.get(reference)
    if rank is not None:
        before = next((each for each in place.passed if each.group == rank.group), None)
        back = 0 if before is None else before.back + (rank.order <= before.order)
        if back >= depth:
            compiler.cuts += 1
            compiler.end("recursion", compiler.limits.depth, place)
            return None
        if reference not in place.here:
            # Of several that are followed at one place any one may lead on.
            entered = {each.group: each for each in place.entered}
            other = entered.get(rank.group, Passed(rank.group, back, rank.order))
            entered[rank.group] = Passed(rank.group, max(other.back, back), max(other.order, rank.order))
            place = replace(place, entered=tuple(entered.values()))
    if reference not in place.here:
        place = replace(place, here=(*place.here, reference))
    return resolve(compiler.root, reference)[-1], place


def _choose(
    compiler: Compiler, choice: Choice, rest: Sequence[Pending], parts: Alternative, place: Place
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
    if excluded and not found and compiler.exhausted is None:
        compiler.exhausted = place
    return found


def _negate(
    compiler: Compiler, schema: Schema, rest: Sequence[Pending], parts: Alternative, place: Place
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


def choices_of(part: Part) -> Iterator[Choice]:
    """The choices that a schema leaves."""
    if "anyOf" in part:
        yield Choice(tuple(part["anyOf"]))
    if "oneOf" in part:
        yield Choice(tuple(part["oneOf"]), exclusive=len(part["oneOf"]) > 1)
    if "if" in part and part.keys() & {"then", "else"}:
        yield Choice(
            (_both(part["if"], part.get("then", True)), _both({"not": part["if"]}, part.get("else", True)))
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


def _both(condition: Schema, consequence: Schema) -> Schema:
    return condition if consequence is True else {"allOf": [condition, consequence]}
