"""What a tool's schema says of the types of its arguments, at every depth.

It says no more than a call needs where a value stands without quotes: whether `007` is a number or a text.
Where a schema leaves that open, so does this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote

Schema = Mapping[str, Any]

# Of `$ref`, `anyOf`, `oneOf` and `allOf` within one another, and of what they leave for one value.
MAX_DEPTH = 8
MAX_ALTERNATIVES = 64

_TYPE_NAMES: dict[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    dict: "object",
    list: "array",
}
_TYPES = frozenset(_TYPE_NAMES.values())
_COMBINING = ("$ref", "anyOf", "oneOf", "allOf")
_ANYTHING: Schema = {}


@dataclass(frozen=True)
class Parameter:
    """One value as it was declared: the arguments as a whole, or something within them."""

    schema: Any
    root: Any
    """The whole schema, which references lead into."""

    @classmethod
    def of_tool(cls, input_schema: Any) -> Parameter:
        return cls(input_schema, input_schema)

    @cached_property
    def types(self) -> frozenset[str] | None:
        """JSON schema's names of the types that it may have, an integer being a number; None if any."""
        found: set[str] = set()
        for alternative in self._alternatives:
            types = _types(alternative)
            if types is None:
                return None
            found |= types
        return frozenset(found)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of its properties, longest first."""
        names = {name for alternative in self._objects for name in _mapping(alternative, "properties")}
        return tuple(sorted(names, key=lambda name: (-len(name), name)))

    @cached_property
    def is_open(self) -> bool:
        """Whether names of the model's own choice are expected among its properties."""
        return any(
            "properties" not in alternative
            or alternative.get("additionalProperties", False) is not False
            or _mapping(alternative, "patternProperties")
            for alternative in self._objects
        )

    def property(self, name: str) -> Parameter:
        return self._one_of([_property(alternative, name) for alternative in self._objects])

    def item(self, index: int) -> Parameter:
        arrays = [alternative for alternative in self._alternatives if _admits(alternative, "array")]
        return self._one_of([_item(alternative, index) for alternative in arrays])

    def _one_of(self, schemas: list[Any]) -> Parameter:
        return Parameter({"anyOf": schemas} if schemas else _ANYTHING, self.root)

    @cached_property
    def _alternatives(self) -> list[Schema]:
        return _alternatives(self.schema, self.root, MAX_DEPTH)

    @cached_property
    def _objects(self) -> list[Schema]:
        return [alternative for alternative in self._alternatives if _admits(alternative, "object")]


def _alternatives(node: Any, root: Any, depth: int) -> list[Schema]:
    """Schemas without references and combinations, of which a value fulfils one."""
    if not isinstance(node, Mapping) or depth == 0:  # `true`, or a schema that contains itself
        return [_ANYTHING]
    groups: list[list[Schema]] = []
    if "$ref" in node:
        groups.append(_alternatives(_resolve(node["$ref"], root), root, depth - 1))
    groups += [_alternatives(part, root, depth - 1) for part in _list(node, "allOf")]
    for keyword in ("anyOf", "oneOf"):
        if variants := _list(node, keyword):
            groups.append([each for variant in variants for each in _alternatives(variant, root, depth - 1)])
    alternatives: list[Schema] = [{key: value for key, value in node.items() if key not in _COMBINING}]
    for group in groups:
        if len(alternatives) * len(group) > MAX_ALTERNATIVES:
            return [_ANYTHING]
        alternatives = [_both(one, other) for one in alternatives for other in group]
    return alternatives


def _both(one: Schema, other: Schema) -> Schema:
    """A schema for what fulfils both, as far as types go."""
    merged = {**one, **other}
    types, more = _types(one), _types(other)
    if types is not None and more is not None:
        merged["type"] = sorted(types & more)
        merged.pop("nullable", None)
    properties, others = _mapping(one, "properties"), _mapping(other, "properties")
    if properties and others:
        shared = {name: {"allOf": [properties[name], others[name]]} for name in properties.keys() & others.keys()}
        merged["properties"] = {**properties, **others, **shared}
    return merged


def type_of(value: Any) -> str:
    """JSON schema's name of the type of a value that JSON has."""
    return _TYPE_NAMES[type(value)]


def _types(schema: Schema) -> frozenset[str] | None:
    declared = schema.get("type")
    if declared is None:
        values = [schema["const"]] if "const" in schema else _list(schema, "enum")
        names = set(map(type_of, values))
    else:
        # Google's dialect has them in capitals.
        names = {str(name).lower() for name in (declared if isinstance(declared, list) else [declared])}
    if not names or not names <= _TYPES:
        return None
    if "number" in names:
        names.add("integer")
    if schema.get("nullable") is True:
        names.add("null")
    return frozenset(names)


def _admits(schema: Schema, name: str) -> bool:
    types = _types(schema)
    return types is None or name in types


def _property(schema: Schema, name: str) -> Any:
    properties = _mapping(schema, "properties")
    if name in properties:
        return properties[name]
    for pattern, value in _mapping(schema, "patternProperties").items():
        try:
            if re.search(pattern, name):
                return value
        except re.error:  # another dialect of regular expressions
            return _ANYTHING
    return schema.get("additionalProperties", _ANYTHING)


def _item(schema: Schema, index: int) -> Any:
    items = schema.get("items", _ANYTHING)
    # Until 2019 the list stood in `items` itself, and what followed it elsewhere.
    first, rest = (items, _ANYTHING) if isinstance(items, list) else (_list(schema, "prefixItems"), items)
    return first[index] if index < len(first) else rest


def follow(reference: str, document: Any) -> Any:
    """What a reference such as `#/$defs/City` leads to within a document (RFC 6901). Raises `LookupError`."""
    start, _, pointer = reference.partition("#")
    if start or (pointer and not pointer.startswith("/")):
        raise LookupError(reference)
    node = document
    for step in unquote(pointer).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping):
            node = node[key]
        elif isinstance(node, list) and key.isdecimal():
            node = node[int(key)]
        else:
            raise LookupError(reference)
    return node


def _resolve(reference: Any, root: Any) -> Any:
    """Anything, if a reference leads nowhere."""
    try:
        return follow(str(reference), root)
    except LookupError:
        return _ANYTHING


def _mapping(schema: Schema, keyword: str) -> Mapping[str, Any]:
    value = schema.get(keyword)
    return value if isinstance(value, Mapping) else {}


def _list(schema: Schema, keyword: str) -> list[Any]:
    value = schema.get(keyword)
    return list(value) if isinstance(value, (list, tuple)) else []
