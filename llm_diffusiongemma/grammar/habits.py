"""What people hand over as a JSON schema and is not quite one, made what its author meant.

Only where that is certain: a wrapper that has no keyword of its own, and, in a schema that names no `$schema`,
keywords of OpenAPI 3.0 and of drafts before 2020-12 that 2020-12 doesn't know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import ConstraintError
from ..wording import quoted
from .references import parts_of, resolve

if TYPE_CHECKING:
    from .dialects import Part

# Where the schema lies in requests to servers, definitions of tools, and formats of replies.
_WRAPPED_AS = (
    *("schema", "json_schema", "response_format"),
    *("parameters", "input_schema", "inputSchema", "function"),
)
_TYPES_OF_WRAPPERS = ("json_schema", "function")
_ANNOTATIONS = frozenset(
    ("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "nullable")
)
_ASSERTIONS = frozenset(
    (
        *("$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if", "then", "else"),
        *("type", "enum", "const", "format", "pattern", "minLength", "maxLength", "multipleOf"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
        *("properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames"),
        *("required", "minProperties", "maxProperties", "dependencies", "dependentRequired", "dependentSchemas"),
        *("items", "prefixItems", "additionalItems", "unevaluatedItems", "contains", "minContains", "maxContains"),
        *("minItems", "maxItems", "uniqueItems"),
    )
)
# Of these nothing says that null is allowed, whatever stands beside them.
_CLOSED_TO_NULL = ("$ref", "allOf", "oneOf", "not", "const", "if", "then", "else")


def unwrapped(schema: Any) -> Any:
    """The schema inside of a server's request or a tool's definition; what is neither comes back as it is."""
    while isinstance(schema, dict):
        asserted = schema.keys() & _ASSERTIONS
        if asserted and not (asserted == {"type"} and schema["type"] in _TYPES_OF_WRAPPERS):
            break
        inside = [schema[name] for name in _WRAPPED_AS if isinstance(schema.get(name), dict)]
        if len(inside) != 1:
            break
        schema = inside[0]
    return schema


def check_says_something(schema: Part, wrapped: bool) -> None:
    """Raises `ConstraintError` for what is no schema though any document would fulfil it.

    That is what has no keyword in it, at any depth, and what came out of a wrapper, or looks like one, and has
    none at its top. Any other schema of unknown keywords allows anything, as its author may want.
    """
    beside = {*_ANNOTATIONS, "id", "definitions"}
    unknown = [name for name in schema if not name.startswith("$") and name not in beside]
    if not unknown or schema.keys() & _ASSERTIONS:
        return
    inside = {name: value for name, value in schema.items() if _has_keyword(value)}
    if inside and not wrapped and inside.keys().isdisjoint(_WRAPPED_AS):
        return
    named = next((name for name in unknown if _looks_like_schema(schema[name])), None)
    way_out = "Put a keyword such as type or properties at its top."
    if named is not None:
        name = quoted(repr(named), 60)
        way_out = f"If {name} is a property, put it under properties; if it is the schema, give what it holds."
    raise ConstraintError(
        f"Nothing in the schema says what a reply must be: {quoted(repr(unknown[0]), 60)} is no keyword of JSON "
        f"schema. {way_out}"
    )


def check_no_json_was_cut(schema: Part) -> None:
    """Raises `ConstraintError` for JSON with a slip in it, which `llm` takes for fields in its short form.

    Their names are what stands between commas, so the first one begins as JSON does.
    """
    fields = schema.get("properties")
    if isinstance(fields, dict) and fields.keys() == {"items"} and isinstance(fields["items"], dict):
        # Of `--schema-multi`.
        inner = fields["items"].get("items")
        schema = inner if isinstance(inner, dict) else {}
        fields = schema.get("properties")
    if not isinstance(fields, dict) or schema != {"type": "object", "properties": fields, "required": [*fields]}:
        return
    name = next(iter(fields), "")
    if name.startswith(("{", "[")):
        raise ConstraintError(
            f"The schema looks like JSON that is cut or has a slip in it: it asks for a field named "
            f"{quoted(repr(name), 60)}. Look at its quotes, commas and brackets, or put it into a file."
        )


def _looks_like_schema(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.keys() & _ASSERTIONS)


def _has_keyword(value: Any) -> bool:
    """Whether a keyword of JSON schema stands anywhere in a value."""
    if isinstance(value, list):
        return any(map(_has_keyword, value))
    return _looks_like_schema(value) or (isinstance(value, dict) and any(map(_has_keyword, value.values())))


def read_habits(root: Part) -> None:
    """Change a schema that names no draft: nullable, lists under items, dependencies, and booleans as bounds.

    What stays where it is can still be led to by a $ref.
    """
    for schema in list(_all_schemas(root)):
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            strict = schema.get(exclusive)
            if strict is True and bound in schema:
                schema[exclusive] = schema.pop(bound)
            elif strict is False:
                del schema[exclusive]
        if isinstance(schema.get("items"), list) and "prefixItems" not in schema:
            first = schema.pop("items")
            if first:
                schema["prefixItems"] = first
            if "additionalItems" in schema:
                schema["items"] = schema.pop("additionalItems")
        if isinstance(schema.get("dependencies"), dict):
            _read_dependencies(schema)
        if schema.get("nullable") is True:
            _let_be_null(schema)


def _all_schemas(root: Part) -> Iterator[Part]:
    """All schemas of a document, and those that only a $ref finds."""
    seen: set[int] = set()
    followed: set[str] = set()
    pending = [root]
    while pending:
        schema = pending.pop()
        if id(schema) in seen:
            continue
        seen.add(id(schema))
        yield schema
        pending += [each for _, each in parts_of(schema)]
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/") and reference not in followed:
            followed.add(reference)
            with suppress(ConstraintError):
                target = resolve(root, reference)[-1]
                pending += [target] if isinstance(target, dict) else []


def _read_dependencies(schema: Part) -> None:
    for name, consequence in schema["dependencies"].items():
        if isinstance(consequence, str):
            consequence = [consequence]
        keyword = "dependentRequired" if isinstance(consequence, list) else "dependentSchemas"
        schema[keyword] = {name: consequence, **schema.get(keyword, {})}


def _let_be_null(schema: Part) -> None:
    null = {"type": "null"}
    if "type" in schema:
        types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if isinstance(types, list) and "null" not in types:
            schema["type"] = [*types, "null"]
    if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]
    if isinstance(schema.get("anyOf"), list):
        schema["anyOf"] = [*schema["anyOf"], null]
    closed = {keyword: schema.pop(keyword) for keyword in _CLOSED_TO_NULL if keyword in schema}
    if closed:
        choice = {"anyOf": [closed, null]}
        if "anyOf" in schema:
            schema["allOf"] = [choice]
        else:
            schema |= choice
