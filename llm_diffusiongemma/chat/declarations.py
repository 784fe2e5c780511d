"""llm's tools in the shape that chat templates read.

Gemma's template shows of a JSON schema the type, description, enum, items, properties, required and
nullable of each node. What is said with other keywords it drops or garbles: a list of types comes out as
Python writes it, of an object without properties every keyword becomes a parameter, the values of a number
are lost, and without a type at the top so is a brace. So a schema is said here with what it shows well, and
the rest stands in the descriptions.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, TypeVar

import llm

from ..errors import PromptError
from ..wording import quoted
from .parameters import follow
from .texts import is_text

Schema = dict[str, Any]
_T = TypeVar("_T")

# Templates walk a schema by recursion.
MAX_DEPTH = 16
# What references may add to the characters of a schema as it was written.
MAX_EXPANSION = 4_000
# About what a node takes but for its texts.
NODE_LENGTH = 25
# Alternatives in alternatives, and references to references.
MAX_NESTING = 64
# Of what is said in a description.
MAX_VALUE_LENGTH = 80
MAX_VALUES = 50
MAX_NAMES = 12
# From here on a bound is that of a language's integers.
UNBOUNDED = 2**53 - 1


def declare(tools: Sequence[llm.Tool]) -> list[dict[str, Any]]:
    """OpenAI-shaped declarations of tools."""
    return [{"type": "function", "function": _function(tool)} for tool in tools]


def check_texts(tools: Sequence[dict[str, Any]]) -> None:
    """Raises `PromptError` if a declaration holds what is no text."""
    for tool in tools:
        if not is_text(tool):
            raise PromptError(
                f"The declaration of the tool {quoted(tool['function']['name'])} holds half of a surrogate pair, "
                "which isn't text. Correct its name, its description or its parameters."
            )


def _function(tool: llm.Tool) -> dict[str, Any]:
    parameters: Schema = {}
    description = tool.description or ""
    if tool.input_schema:
        shown = simplify({**tool.input_schema, "type": "object"})
        # The template shows no description there. Pydantic's is often the function's.
        said = shown.get("description", "")
        if said not in description:
            description = f"{description} {said}".strip()
        parameters = {"type": "object", "properties": shown.get("properties", {})}
        if "required" in shown:
            parameters["required"] = shown["required"]
    return {"name": tool.name, "description": description, "parameters": parameters}


def simplify(schema: Any) -> Schema:
    """A schema in the keywords that a template shows, as close to its meaning as that goes.

    Each node has a `type`, which is a name; `enum` holds texts only; an object has `properties`, and
    `required` names some of them. Of alternatives the first is shown and the others are named in the
    description; objects are alternatives of one shape and shown as one. What contains itself is shown once,
    and what is too long only down to some depth. Nothing is refused.
    """
    return _Shower(schema).show()


@dataclass(frozen=True)
class _Flat:
    """One node without references and combinations. Its children are as they were written."""

    keywords: Schema = field(default_factory=dict)
    types: tuple[str, ...] = ()  # the first is shown; null is one only if there is no other
    nullable: bool = False
    alternatives: tuple[_Flat, ...] = ()
    # Which names go together, if alternatives require different ones.
    choices: tuple[tuple[str, ...], ...] = ()
    # What gives this node its children: two places with the same ones are the same again.
    sources: frozenset[int] = frozenset()

    @property
    def kind(self) -> str:
        """Its type, or what its keywords are about."""
        if self.types:
            return self.types[0]
        return next((kind for keyword, kind in _ABOUT.items() if keyword in self.keywords), "any")

    @property
    def enum(self) -> list[Any]:
        values: list[Any] = self.keywords.get("enum", [])
        return values

    @property
    def properties(self) -> dict[str, Any]:
        properties: dict[str, Any] = self.keywords.get("properties", {})
        return properties


_ABOUT = {
    **dict.fromkeys(
        ("properties", "required", "additionalProperties", "patternProperties", "propertyNames"), "object"
    ),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems", "uniqueItems"), "array"),
    **dict.fromkeys(("pattern", "minLength", "maxLength", "format"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
}
_CHILDREN = {"properties", "items", "prefixItems", "additionalProperties", "patternProperties"}


class _Shower:
    """Shows one schema, broadest first: what is left out for its length is what lies deepest."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._flats: dict[int, tuple[Any, _Flat]] = {}
        self._nesting = 0
        self._left = MAX_EXPANSION
        # Where a reference is looked for: schemas put into others bring their definitions with them.
        self._documents = [schema]
        for node in _nodes(schema):
            if isinstance(node, str):
                self._left += len(node)
            elif isinstance(node, dict):
                self._left += NODE_LENGTH
                if "$defs" in node or "definitions" in node:
                    self._documents.append(node)

    def show(self) -> Schema:
        root: Schema = {}
        # A node, where to show it, and the sources of what it lies in.
        waiting: deque[tuple[Any, Schema, tuple[frozenset[int], ...]]] = deque([(self._schema, root, ())])
        while waiting:
            node, shown, above = waiting.popleft()
            flat = self._flat(node)
            is_again = bool(flat.sources) and flat.sources in above
            is_cut = len(above) == MAX_DEPTH or self._left <= 0
            children: list[tuple[Any, Schema]] = []
            if is_cut and flat.sources:
                shown["description"] = "(not shown further)"
            elif self._left > 0:
                shown["description"] = self._description(flat, is_again=is_again, is_top=not above)
            if flat.kind == "string" and _are_texts(flat) and self._left > 0:
                shown["enum"] = [value if isinstance(value, str) else _value(value) for value in flat.enum]
            if flat.kind == "array" and not (is_again or is_cut) and (items := _items(flat)) is not None:
                shown["items"] = {}
                children = [(items, shown["items"])]
            shown["nullable"] = flat.nullable
            if flat.kind == "object":
                properties = {} if is_again or is_cut else flat.properties
                allowed = {name: child for name, child in properties.items() if child is not False}
                # Never missing: or the template takes the keywords for properties.
                shown["properties"] = {name: {} for name in allowed}
                shown["required"] = _required(flat, allowed)
                children = [(child, shown["properties"][name]) for name, child in allowed.items()]
            shown["type"] = flat.kind
            for keyword in ("description", "enum", "nullable", "required"):
                if not shown.get(keyword):
                    shown.pop(keyword, None)
            self._left -= sum(len(text) for text in _nodes(shown) if isinstance(text, str))
            self._left -= NODE_LENGTH * len(children)
            waiting += [(child, place, (*above, flat.sources)) for child, place in children]
        return root

    def _flat(self, node: Any) -> _Flat:
        if not isinstance(node, dict) or self._nesting == MAX_NESTING:  # `true` is anything
            return _Flat()
        if id(node) not in self._flats:
            self._flats[id(node)] = (node, _Flat())  # for what refers to nothing but itself
            self._nesting += 1
            self._flats[id(node)] = (node, self._flatten(node))
            self._nesting -= 1
        return self._flats[id(node)][1]

    def _flatten(self, node: Schema) -> _Flat:
        parts = [_own(node)]
        if isinstance(reference := node.get("$ref"), str):
            parts.append(self._flat(self._resolve(reference)))
        parts += map(self._flat, _list(node, "allOf"))
        parts += [self._union(_list(node, keyword)) for keyword in ("anyOf", "oneOf")]
        return reduce(_both, parts)

    def _union(self, variants: list[Any]) -> _Flat:
        flats = [self._flat(variant) for variant in variants if variant is not False]
        others = [flat for flat in flats if flat.types != ("null",)]
        nullable = len(others) < len(flats) or any(flat.nullable for flat in others)
        if not others:
            return _Flat(types=("null",)) if nullable else _Flat()
        if all(flat.enum for flat in others) and len({_text(flat) for flat in others}) > 1:
            others = list(map(_described_values, others))
        first, *rest = others
        alternatives: list[_Flat] = []
        for other in rest:
            if first.kind == other.kind and (first.kind in ("object", "array") or (first.enum and other.enum)):
                first = _either(first, other)
            elif other not in (first, *alternatives):
                alternatives.append(other)
        return replace(first, nullable=nullable, alternatives=(*first.alternatives, *alternatives))

    def _resolve(self, reference: str) -> Any:
        """What a reference within the schema points to; `true`, which is anything, if that isn't there."""
        for document in self._documents:
            with suppress(LookupError):
                return follow(reference, document)
        return True

    def _description(self, flat: _Flat, *, is_again: bool, is_top: bool) -> str:
        said = [flat.keywords.get("description", "")]
        if names := _unique(map(self._name, _others(flat))):
            said.append(f"(or: {_shortened(names, MAX_NAMES)})")
        if is_again:
            title = flat.keywords.get("title")
            notes = [f"{title} again" if title else "the same again"]
        else:
            notes = list(self._notes(flat, is_top=is_top))
        if notes:
            said.append(f"({'; '.join(notes)})")
        return " ".join(filter(None, said))

    def _notes(self, flat: _Flat, *, is_top: bool = False) -> Iterator[str]:
        """What the template can't show of a node, in a few words each."""
        keywords, kind = flat.keywords, flat.kind
        if note := _values_note(flat):
            yield note
        if kind == "string":
            yield from _length_note(keywords, "Length", "character")
            yield from (f"{name}: {keywords[name]}" for name in ("format", "pattern") if name in keywords)
            if "contentEncoding" in keywords:
                yield str(keywords["contentEncoding"])
        elif kind in ("number", "integer"):
            yield from _bounds_note(keywords)
        elif kind == "array":
            yield from _length_note(keywords, "Items", "item")
            if keywords.get("uniqueItems") is True:
                yield "no item twice"
            names = [self._name(self._flat(item)) for item in _prefix(flat)]
            if len(set(names)) > 1:
                yield f"in this order: {_shortened(names, MAX_NAMES)}"
        elif kind == "object":
            yield from self._keys_notes(flat, is_top)
        if keywords.get("default") is not None:
            yield f"default: {_value(keywords['default'])}"
        if examples := _list(keywords, "examples"):
            yield f"e.g. {', '.join(map(_value, examples[:3]))}"
        if keywords.get("deprecated") is True:
            yield "deprecated"

    def _keys_notes(self, flat: _Flat, is_top: bool) -> Iterator[str]:
        keywords = flat.keywords
        more = keywords.get("additionalProperties")
        patterns = keywords.get("patternProperties", {})
        keys = "other keys" if flat.properties else "any keys"
        if isinstance(names := keywords.get("propertyNames"), dict):
            names = self._flat(names)
            # Whatever else is said there, names are texts.
            names = replace(names, types=("string",))
            notes = [_all_values(names)] if names.enum else list(self._notes(names))
            keys = f"keys: {', '.join(notes)}" if notes else keys
        value = self._name(self._flat(more))
        if isinstance(more, dict) and value != "any":
            yield f"{keys}; each value: {value}"
        # Of an object that says nothing, a tool that does so has no parameters.
        elif more is True or more == {} or (more is None and not (flat.properties or patterns or is_top)):
            yield keys
        for pattern, child in patterns.items():
            yield f"keys like {pattern}: {self._name(self._flat(child))}"
        yield from _length_note(keywords, "Properties", "key")
        if flat.choices:
            yield f"required: {'; or: '.join(', '.join(names) for names in flat.choices)}"
        for name, needed in keywords.get("dependentRequired", {}).items():
            if isinstance(needed, list) and needed:
                yield f"{name} needs {', '.join(map(str, needed))}"

    def _name(self, flat: _Flat, *, is_inner: bool = False) -> str:
        """A node in a few words, for where its place is a description."""
        name = flat.kind
        if flat.enum and not _is_any_boolean(flat):
            name = f"one of {_all_values(flat)}" if len(flat.enum) > 1 else _value(flat.enum[0])
        if is_inner:
            return name
        if name == "array" and (items := _items(flat)) is not None:
            name = f"array of {self._name(self._flat(items), is_inner=True)}"
        elif name == "object" and flat.properties:
            inner = [
                f"{key} ({self._name(self._flat(child), is_inner=True)})" for key, child in flat.properties.items()
            ]
            name = f"object with {_shortened(inner, MAX_NAMES)}"
        elif name in ("string", "number", "integer"):
            name = ", ".join([name, *self._notes(flat)])
        return " or ".join(_unique([name, *(self._name(other, is_inner=True) for other in _others(flat))]))


def _own(node: Schema) -> _Flat:
    """What a node says itself. Keywords that don't have the shape they should have are left out."""
    keywords = {
        name: value
        for name, value in node.items()
        if value is not None and name in _SHAPES and isinstance(value, _SHAPES[name])
    }
    for name in ("description", "title"):
        keywords[name] = keywords.get(name, "").strip()
        if not keywords[name]:
            del keywords[name]
    if isinstance(node.get("items"), list):  # before draft 2020-12
        keywords["prefixItems"] = node["items"]
    if "example" in keywords:
        keywords.setdefault("examples", [keywords.pop("example")])
    types = _types(node.get("type"))
    nullable = node.get("nullable") is True
    if values := [node["const"]] if "const" in node else _list(node, "enum"):
        values = _distinct(values)
        keywords["enum"] = [value for value in values if value is not None]
        types = types or tuple(dict.fromkeys(map(_type_of, values)))
    if "null" in types and len(types) > 1:
        types = tuple(name for name in types if name != "null")
        nullable = True
    sources = frozenset([id(node)]) if not _CHILDREN.isdisjoint(keywords) else frozenset()
    return _Flat(keywords, types, nullable, sources=sources)


_NUMBER = (int, float)
_SHAPES: dict[str, Any] = {
    **dict.fromkeys(("description", "title", "format", "pattern", "contentEncoding"), str),
    **dict.fromkeys(("properties", "patternProperties", "dependentRequired"), dict),
    **dict.fromkeys(("required", "prefixItems", "examples"), list),
    **dict.fromkeys(("items", "additionalProperties", "propertyNames"), (dict, bool)),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _NUMBER),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _NUMBER),
    **dict.fromkeys(("uniqueItems", "deprecated"), bool),
    **dict.fromkeys(("default", "example"), object),
}


def _both(first: _Flat, second: _Flat) -> _Flat:
    """A node that is the one and the other."""
    a, b = first.keywords, second.keywords
    keywords = {**b, **a}
    if "description" in a and "description" in b and b["description"] not in a["description"]:
        keywords["description"] = f"{a['description']} {b['description']}"
    if "properties" in a and "properties" in b:
        keywords["properties"] = _joined(a["properties"], b["properties"], "allOf")
    if "items" in a and "items" in b:
        keywords["items"] = {"allOf": [a["items"], b["items"]]}
    if "required" in a and "required" in b:
        keywords["required"] = _unique([*a["required"], *b["required"]])
    if "enum" in a and "enum" in b:
        known = set(map(_json, b["enum"]))
        keywords["enum"] = [value for value in a["enum"] if _json(value) in known] or a["enum"]
    return _Flat(
        keywords,
        _common(first.types, second.types),
        first.nullable or second.nullable,
        _together(first.alternatives, second.alternatives),
        _together(first.choices, second.choices),
        first.sources | second.sources,
    )


def _either(first: _Flat, second: _Flat) -> _Flat:
    """A node that shows what is the one or the other: two objects, two arrays, or two lists of values."""
    a, b = first.keywords, second.keywords
    keywords = {name: value for name, value in a.items() if name in b and b[name] == value}
    texts = dict.fromkeys(text for text in (a.get("description"), b.get("description")) if text)
    if texts:
        keywords["description"] = " / ".join(texts)
    if "enum" in a and "enum" in b:
        keywords["enum"] = _distinct([*a["enum"], *b["enum"]])
    if first.kind == "object":
        keywords["properties"] = _joined(first.properties, second.properties, "anyOf")
        keywords["required"] = [name for name in a.get("required", ()) if name in b.get("required", ())]
        if more := [each["additionalProperties"] for each in (a, b) if each.get("additionalProperties")]:
            keywords["additionalProperties"] = {"anyOf": more}
    items = [_items(first), _items(second)]
    if first.kind == "array" and None not in items:
        keywords["items"] = {"anyOf": items}
    requirements = [
        flat.choices or (tuple(map(str, _list(flat.keywords, "required"))),) for flat in (first, second)
    ]
    choices = _together(*requirements)
    return _Flat(
        keywords,
        _common(first.types, second.types),
        first.nullable or second.nullable,
        _together(first.alternatives, second.alternatives),
        choices if len(choices) > 1 and all(choices) else (),
        first.sources | second.sources,
    )


def _described_values(flat: _Flat) -> _Flat:
    """One of several lists of values: what is said of it is said of its values."""
    if text := _text(flat):
        return replace(flat, keywords={**flat.keywords, "description": f"{_all_values(flat)}: {text}"})
    return flat


def _text(flat: _Flat) -> str:
    text: str = flat.keywords.get("description") or flat.keywords.get("title") or ""
    return text


def _joined(first: Schema, second: Schema, keyword: str) -> Schema:
    """The properties of both; of one that both have a schema that combines the two."""
    both = {name: {keyword: [first[name], second[name]]} for name in first if name in second}
    same = {name: first[name] for name in both if first[name] == second[name]}
    return {**first, **second, **both, **same}


def _common(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """The types that are in both, where an integer is a number; the first ones if none is."""
    if not first or not second:
        return first or second
    pairs = [{one, other} for one in first for other in second]
    common = [pair.pop() if len(pair) == 1 else "integer" for pair in pairs if _is_same_type(pair)]
    return tuple(dict.fromkeys(common)) or first


def _is_same_type(pair: set[str]) -> bool:
    return len(pair) == 1 or pair == {"integer", "number"}


def _items(flat: _Flat) -> Any:
    """The schema of an array's items, None if they are anything."""
    items = flat.keywords.get("items")
    alternatives = [*_prefix(flat), *([items] if isinstance(items, dict) and items else [])]
    if len(alternatives) > 1:
        return {"anyOf": alternatives}
    return alternatives[0] if alternatives else None


def _prefix(flat: _Flat) -> list[Any]:
    return _list(flat.keywords, "prefixItems")


def _others(flat: _Flat) -> list[_Flat]:
    """What a node may be instead of what is shown of it."""
    children = {name: value for name, value in flat.keywords.items() if name in _CHILDREN}
    kinds = () if flat.enum else flat.types[1:]
    return [*(_Flat(children, (kind,)) for kind in kinds), *flat.alternatives]


def _required(flat: _Flat, properties: Schema) -> list[str]:
    # Draft 3 said it in the property itself, and people still do.
    said = [
        name for name, child in properties.items() if isinstance(child, dict) and child.get("required") is True
    ]
    named = [name for name in _list(flat.keywords, "required") if isinstance(name, str) and name in properties]
    return list(dict.fromkeys([*named, *said]))


def _values_note(flat: _Flat) -> str:
    """The values of a node whose `enum` the template doesn't show: only that of strings."""
    if not flat.enum or _is_any_boolean(flat) or (flat.kind == "string" and _are_texts(flat)):
        return ""
    return f"one of {_all_values(flat)}" if len(flat.enum) > 1 else f"always {_value(flat.enum[0])}"


def _is_any_boolean(flat: _Flat) -> bool:
    return flat.kind == "boolean" and len(flat.enum) == 2


def _are_texts(flat: _Flat) -> bool:
    """Whether all values can be shown as texts; others than texts that are declared as strings are meant so."""
    return flat.types == ("string",) or all(isinstance(value, str) for value in flat.enum)


def _all_values(flat: _Flat) -> str:
    return _shortened(list(map(_value, flat.enum)), MAX_VALUES)


def _bounds_note(keywords: Schema) -> Iterator[str]:
    low, high = keywords.get("minimum"), keywords.get("maximum")
    above, below = keywords.get("exclusiveMinimum"), keywords.get("exclusiveMaximum")
    if above is True:  # draft 4: the bound itself is excluded
        low, above = None, low
    if below is True:
        high, below = None, high
    bounds = {"at least": low, "more than": above, "at most": high, "less than": below}
    known = {
        words: value
        for words, value in bounds.items()
        if value is not None and not isinstance(value, bool) and abs(value) < UNBOUNDED
    }
    if list(known) == ["at least", "at most"]:
        yield f"{_value(low)} to {_value(high)}"
    elif known:
        yield ", ".join(f"{words} {_value(value)}" for words, value in known.items())
    if "multipleOf" in keywords:
        yield f"multiple of {_value(keywords['multipleOf'])}"


def _length_note(keywords: Schema, what: str, unit: str) -> Iterator[str]:
    low, high = keywords.get(f"min{what}"), keywords.get(f"max{what}")
    if not low:
        low = None
    if high is not None and high >= UNBOUNDED:
        high = None
    units = unit if (low if high is None else high) == 1 else f"{unit}s"
    if low is not None and low == high:
        yield f"exactly {low} {units}"
    elif low is not None and high is not None:
        yield f"{low} to {high} {units}"
    elif low is not None:
        yield f"at least {low} {units}"
    elif high is not None:
        yield f"at most {high} {units}"


def _types(written: Any) -> tuple[str, ...]:
    """Type names, in small letters as JSON schema has them; Google's kind of schema has capitals."""
    names = written if isinstance(written, list) else [written]
    return tuple(dict.fromkeys(name.lower() for name in names if isinstance(name, str) and name))


def _type_of(value: Any) -> str:
    for name, kind in (
        ("null", type(None)),
        ("boolean", bool),
        ("integer", int),
        ("number", float),
        ("string", str),
        ("array", list),
    ):
        if isinstance(value, kind):
            return name
    return "object"


def _value(value: Any) -> str:
    """A value as JSON, cut if it is long."""
    text = _json(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}…"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _distinct(values: list[Any]) -> list[Any]:
    """The values without repetition; `true` is not 1."""
    return list({_json(value): value for value in values}.values())


def _unique(texts: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(map(str, texts)))


def _together(first: tuple[_T, ...], second: tuple[_T, ...]) -> tuple[_T, ...]:
    return (*first, *(each for each in second if each not in first))


def _shortened(texts: list[str], number: int) -> str:
    more = f", … ({len(texts)} in all)" if len(texts) > number else ""
    return f"{', '.join(texts[:number])}{more}"


def _list(node: Schema, keyword: str) -> list[Any]:
    value = node.get(keyword)
    return value if isinstance(value, list) else []


def _nodes(value: Any) -> Iterator[Any]:
    """A value and all that is in it, names too."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, dict):
            waiting += [*node, *node.values()]
        elif isinstance(node, list):
            waiting += node
