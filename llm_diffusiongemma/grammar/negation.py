"""What a schema does not take, in keywords that say what is taken.

The complement of a schema is a choice of schemas, for each of its keywords what breaks it; negations inside of
those are resolved at their own place. So nothing is ever negated after it has been narrowed: what is left out of
the complement can only make the language smaller.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .dialects import Part, Schema, refs_stand_alone
from .keywords import TYPES, other_items, patterns_of, prefix_of
from .pattern import is_found
from .places import Aside

if TYPE_CHECKING:
    from .compiler import Compiler

# What no keyword says of numbers and strings, in keywords of ours, which no schema can have: they have a space.
NOT_VALUES = "not enum"
NOT_PATTERN = "not pattern"
NOT_MULTIPLE = "not multipleOf"
# What no keyword says of objects: some property has such a name, and such a value.
SOME_PROPERTY = "some property"
# What has no complement that can be written: the keyword's name.
NOT_POSSIBLE = "not possible"

# Multiples are counted by a state for each remainder.
MAX_MULTIPLE = 2000

_BOUNDS = (
    ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"),
    ("maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"),
)
# A minimum, the maximum that breaks it, and what it counts.
_COUNTS = (
    ("minLength", "maxLength", "string"),
    ("minItems", "maxItems", "array"),
    ("minProperties", "maxProperties", "object"),
)


@dataclass(frozen=True)
class SomeProperty:
    """Among the properties that nothing lists there is one whose name and whose value fulfil these schemas.

    - `keyword`: what asks for it, for people.
    """

    name: Schema
    value: Schema
    keyword: str


@dataclass(frozen=True)
class Negation:
    """A value must not fulfil the schema."""

    schema: Schema


def negate(compiler: Compiler, schema: Schema, names: Collection[str]) -> list[Schema]:
    """Schemas of which a value fulfils one if it does not fulfil `schema`; never if it does.

    `names` are the properties that the objects in question may have, where anything lists them.
    """
    if isinstance(schema, bool):
        return [] if schema else [True]
    if "$ref" in schema and refs_stand_alone(compiler.validator):
        return [Aside({"not": {"$ref": schema["$ref"]}})]
    part = {keyword: value for keyword, value in schema.items() if keyword in compiler.obeyed}
    return [
        *_in_place(part),
        *_types_and_values(part),
        *_scalars(part),
        *_counts(part),
        *_arrays(part),
        *_objects(compiler, part, names),
    ]


def is_exact(schema: Schema) -> bool:
    """Whether it is certain that nothing is missing in the schema's complement."""
    if isinstance(schema, bool):
        return True
    # Before draft 6 a number with a fraction of 0 is no integer.
    types = schema.get("type", ())
    return schema.keys() <= _EXACT and ("integer" not in types or "number" in types)


_EXACT = {"type", "enum", "const", "required", "pattern", "properties", "title", "description", "$comment"}


def _nothing(schema: Schema) -> bool:
    """Whether a schema asks for nothing."""
    return schema is True or schema == {}


def _in_place(part: Part) -> Iterator[Schema]:
    """Of keywords that hold other schemas against the same value."""
    if "$ref" in part:
        yield Aside({"not": {"$ref": part["$ref"]}})
    for keyword in part.keys() & {"$dynamicRef", "$recursiveRef"}:
        yield Aside({NOT_POSSIBLE: keyword})
    for each in part.get("allOf", ()):
        yield Aside({"not": each})
    for keyword in ("anyOf", "oneOf"):
        if keyword in part:
            yield Aside({"allOf": [{"not": each} for each in part[keyword]]})
    for pair in itertools.combinations(part.get("oneOf", ()), 2):
        yield Aside({"allOf": list(pair)})
    if "not" in part:
        yield Aside({"allOf": [part["not"]]})
    if "if" in part:
        for condition, keyword in ((part["if"], "then"), ({"not": part["if"]}, "else")):
            if not _nothing(part.get(keyword, True)):
                yield Aside({"allOf": [condition, {"not": part[keyword]}]})


def _types_and_values(part: Part) -> Iterator[Schema]:
    if "type" in part:
        named = {part["type"]} if isinstance(part["type"], str) else set(part["type"])
        if "number" in named:
            named.add("integer")
        elif "integer" in named:
            named.add("number")
            yield Aside({"type": "number", NOT_MULTIPLE: 1})
        yield Aside({"type": sorted(TYPES - named)})
    if "enum" in part:
        yield from _unlike(part["enum"])
    if "const" in part:
        yield from _unlike([part["const"]])


def _unlike(values: list[Any]) -> Iterator[Schema]:
    lists = [value for value in values if isinstance(value, list)]
    objects = [value for value in values if isinstance(value, dict)]
    scalars = [value for value in values if not isinstance(value, list | dict)]
    plain = TYPES - {"array" if lists else "", "object" if objects else ""}
    yield Aside({"type": sorted(plain), NOT_VALUES: scalars})
    if lists:
        yield Aside({"type": "array", "allOf": [{"anyOf": _unlike_list(value)} for value in lists]})
    if objects:
        yield Aside({"type": "object", "allOf": [{"anyOf": _unlike_object(value)} for value in objects]})


def _unlike_list(value: list[Any]) -> list[Schema]:
    found: list[Schema] = [Aside({"type": "array", "minItems": len(value) + 1})]
    if value:
        found.append(Aside({"type": "array", "maxItems": len(value) - 1}))
    return found + [_item(index, {"not": {"enum": [item]}}) for index, item in enumerate(value)]


def _unlike_object(value: dict[str, Any]) -> list[Schema]:
    found: list[Schema] = [Aside({"type": "object", "minProperties": len(value) + 1})]
    for name, member in value.items():
        found += [lacks(name), _has(name, {"not": {"enum": [member]}})]
    return found


def _scalars(part: Part) -> Iterator[Schema]:
    """Of keywords that look at strings and numbers. A format is an annotation, and always fulfilled."""
    if "pattern" in part:
        yield Aside({"type": "string", NOT_PATTERN: part["pattern"]})
    if "multipleOf" in part:
        factor = Fraction(str(part["multipleOf"]))
        if factor.denominator == 1 and factor <= MAX_MULTIPLE:
            yield Aside({"type": "number", NOT_MULTIPLE: int(factor)})
        else:
            yield Aside({"type": "number", NOT_POSSIBLE: "multipleOf"})
    for inclusive, exclusive, opposite, opposite_exclusive in _BOUNDS:
        strict = part.get(exclusive, False)
        if inclusive in part:
            # Draft 4 says by a boolean that the bound itself is excluded.
            yield Aside({"type": "number", opposite if strict is True else opposite_exclusive: part[inclusive]})
        if not isinstance(strict, bool):
            yield Aside({"type": "number", opposite: strict})


def _counts(part: Part) -> Iterator[Schema]:
    for minimum, maximum, kind in _COUNTS:
        if int(part.get(minimum, 0)) > 0:
            yield Aside({"type": kind, maximum: int(part[minimum]) - 1})
        if maximum in part:
            yield Aside({"type": kind, minimum: int(part[maximum]) + 1})


def _arrays(part: Part) -> Iterator[Schema]:
    prefix, others = prefix_of(part), other_items(part)
    for index, schema in enumerate(prefix):
        if not _nothing(schema):
            yield _item(index, {"not": schema})
    if others is not None and not _nothing(others):
        # Behind a prefix the next item is as good as any other.
        yield (
            _item(len(prefix), {"not": others})
            if prefix
            else Aside({"type": "array", "contains": {"not": others}})
        )
    if "contains" in part:
        least = int(part.get("minContains", 1))
        if least == 1:
            yield Aside({"type": "array", "items": {"not": part["contains"]}})
        elif least > 1:
            yield _contains(part["contains"], 0, least - 1)
        if "maxContains" in part:
            yield _contains(part["contains"], int(part["maxContains"]) + 1, None)
    if part.get("uniqueItems", False):
        yield Aside({"type": "array", NOT_POSSIBLE: "uniqueItems"})
    if not _nothing(part.get("unevaluatedItems", True)):
        yield Aside({"type": "array", NOT_POSSIBLE: "unevaluatedItems"})


def _contains(schema: Schema, least: int, most: int | None) -> Schema:
    found = Aside({"type": "array", "contains": schema, "minContains": least})
    if most is not None:
        found["maxContains"] = most
    return found


def _item(index: int, schema: Schema) -> Schema:
    """There is an item at an index, and it fulfils the schema."""
    return Aside({"type": "array", "minItems": index + 1, "prefixItems": [True] * index + [schema]})


def lacks(name: str) -> Aside:
    """If it is an object it has no property of that name."""
    return Aside({"propertyNames": {"not": {"enum": [name]}}})


def _has(name: str, schema: Schema = True) -> Schema:
    return Aside({"type": "object", "required": [name], "properties": {name: schema}})


def _objects(compiler: Compiler, part: Part, names: Collection[str]) -> Iterator[Schema]:
    own: dict[str, Schema] = part.get("properties", {})
    for name in part.get("required", ()):
        yield Aside({"type": "object", **lacks(name)})
    for name, schema in own.items():
        if not _nothing(schema):
            yield _has(name, {"not": schema})
    patterns = patterns_of(part)
    # Where names are listed, no others are looked for: there are ways enough.
    unlisted = not names
    for pattern, schema in patterns.items():
        if not _nothing(schema):
            yield from (_has(name, {"not": schema}) for name in names if is_found(pattern, name))
            if unlisted:
                yield _some({"pattern": pattern}, {"not": schema}, "patternProperties")
    others = part.get("additionalProperties", True)
    if not _nothing(others):
        for name in names:
            if name not in own and not any(is_found(pattern, name) for pattern in patterns):
                yield _has(name, {"not": others})
        if unlisted:
            excluded = [{"enum": list(own)}] if own else []
            name = {"not": {"anyOf": [*excluded, *({"pattern": pattern} for pattern in patterns), False]}}
            yield _some(name, {"not": others}, "additionalProperties")
    if "propertyNames" in part and not _nothing(part["propertyNames"]):
        yield from (_has(name) for name in names if not compiler.is_valid(name, [part["propertyNames"]]))
        if unlisted:
            yield _some({"not": part["propertyNames"]}, True, "propertyNames")
    if not _nothing(part.get("unevaluatedProperties", True)):
        yield Aside({"type": "object", NOT_POSSIBLE: "unevaluatedProperties"})
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, consequence in part.get(keyword, {}).items():
            if isinstance(consequence, str):
                consequence = [consequence]
            if isinstance(consequence, list):
                consequence = {"required": consequence}
            yield Aside({"type": "object", "required": [name], "not": consequence})


def _some(name: Schema, value: Schema, keyword: str) -> Schema:
    return Aside({"type": "object", SOME_PROPERTY: SomeProperty(name, value, keyword)})
