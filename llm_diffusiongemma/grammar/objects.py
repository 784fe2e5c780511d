"""The objects of one way through the choices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import scalars
from .dialects import Part, Schema
from .keywords import declared_of, largest_of, patterns_of, required_of, smallest_of
from .language import NOTHING, Language, Literal, Separated, concatenate
from .layout import SPACE, gaps
from .pattern import is_found
from .places import Alternative, Aside, Conjunction, Place, refused

if TYPE_CHECKING:
    from .compiler import Compiler


def object_language(compiler: Compiler, parts: Alternative, place: Place) -> Language:
    """The objects that fulfil `parts`."""
    least = largest_of(parts, "minProperties")
    most = smallest_of(parts, "maxProperties", None)
    required = required_of(parts)
    names = declared_of(parts) | required
    if names:
        members: list[tuple[Language, bool]] = []
        for name in names:
            conjunction = member(compiler, parts, name, place)
            value = compiler.language(conjunction, place.inside(f".{name}", conjunction))
            if value is NOTHING and name in required:
                return NOTHING
            key = scalars.json_text(name)
            members.append((concatenate(Literal(key + b":"), SPACE, value), name in required))
        rest = None
        most = None if most is None or most >= len(members) else most
        # Counting is free where it can't matter.
        least = 0 if least <= len(required) else least
        if least > len(members):
            raise refused("minProperties", "there are fewer properties than it demands", place)
    else:
        members = []
        rest = _entry(compiler, parts, place)
        if least > 1:
            raise refused("minProperties", "names that the schema doesn't list may repeat", place)
        if most is not None:
            asked, most = most, min(most, max(least, compiler.limits.count))
            compiler.lower("maxProperties", asked, most, place)
    if most is not None and most < least:
        return NOTHING
    comma, opening, closing = gaps(place.nesting)
    content = Separated(tuple(members), rest, comma, least, most)
    return concatenate(Literal(b"{"), opening, content, closing, Literal(b"}"))


def member(compiler: Compiler, parts: Alternative, name: str, place: Place) -> Conjunction:
    """What the value of a property must fulfil."""
    schemas: list[Schema] = []
    for part in parts:
        found = [schema for pattern, schema in patterns_of(part).items() if is_found(pattern, name)]
        if name in part.get("properties", {}):
            found.append(part["properties"][name])
        if not found and "additionalProperties" in part:
            found.append(part["additionalProperties"])
        if "propertyNames" in part and not compiler.is_valid(name, [part["propertyNames"]]):
            found.append(False)
        if "unevaluatedProperties" in part and not any(
            name in beside.get("properties", {})
            or _takes_additional_properties(compiler, beside)
            or any(is_found(pattern, name) for pattern in patterns_of(beside))
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


def _entry(compiler: Compiler, parts: Alternative, place: Place) -> Language:
    """A property of an object whose properties the schema doesn't list."""
    keys: list[Schema] = [{"type": "string"}, *(p["propertyNames"] for p in parts if "propertyNames" in p)]
    values: list[Schema] = []
    for part in parts:
        patterns = patterns_of(part)
        if len(patterns) > 1:
            raise refused("patternProperties", "a name may match several of its patterns", place)
        if patterns:
            [(pattern, schema)] = patterns.items()
            keys.append({"pattern": pattern})
            values.append(schema)
        elif "additionalProperties" in part:
            values.append(part["additionalProperties"])
        if "unevaluatedProperties" in part:
            values.append(part["unevaluatedProperties"])
    inside = place.inside(".*", tuple(values))
    value = compiler.language(tuple(values), inside)
    if value is NOTHING:
        return NOTHING
    return concatenate(compiler.language(tuple(keys), inside), Literal(b":"), SPACE, value)
