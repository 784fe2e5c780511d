"""llm's tools in the shape that chat templates read.

Gemma's template shows of a JSON schema the type, description, enum, items, properties, required and
nullable of each node and silently drops the rest. What Pydantic writes with other keywords, such as
`Optional[int]` or a class of its own, is said here with those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llm

Schema = dict[str, Any]

MAX_DEPTH = 16


def declare(tools: Sequence[llm.Tool]) -> list[dict[str, Any]]:
    """OpenAI-shaped declarations of tools."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": simplify(tool.input_schema or {}),
            },
        }
        for tool in tools
    ]


def simplify(schema: Schema) -> Schema:
    """A schema without `$ref`, `anyOf`, `oneOf`, `allOf` and `const`, as close to its meaning as that goes.

    Of several alternatives the first is shown and the others are named in the description.
    """
    definitions = {**(schema.get("definitions") or {}), **(schema.get("$defs") or {})}
    return _simplify(schema, definitions, MAX_DEPTH)


def _simplify(node: Any, definitions: dict[str, Any], depth: int) -> Schema:
    if not isinstance(node, dict) or depth == 0:  # `true`, or a schema that contains itself
        return {}
    node = dict(node)
    reference = node.pop("$ref", None)
    if isinstance(reference, str):
        referenced = definitions.get(reference.rpartition("/")[2])
        node = {**(referenced if isinstance(referenced, dict) else {}), **node}  # it may as well be `true`
        return _simplify(node, definitions, depth - 1)
    for part in node.pop("allOf", None) or ():
        node = {**_simplify(part, definitions, depth - 1), **node}
    variants = [
        _simplify(variant, definitions, depth - 1)
        for keyword in ("anyOf", "oneOf")
        for variant in node.pop(keyword, None) or ()
    ]
    chosen = [variant for variant in variants if variant.get("type") != "null"]
    if len(chosen) < len(variants):
        node["nullable"] = True
    if chosen:
        others = [str(variant.get("type", "anything")) for variant in chosen[1:]]
        node = {**chosen[0], **node}
        if others:
            node["description"] = f"{node.get('description', '')} (or: {', '.join(others)})".strip()
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if "type" not in node and node.get("enum"):
        node["type"] = _type_of(node["enum"][0])
    if isinstance(node.get("properties"), dict):
        node["properties"] = {
            name: _simplify(child, definitions, depth - 1) for name, child in node["properties"].items()
        }
    if "items" in node:
        node["items"] = _simplify(node["items"], definitions, depth - 1)
    return {name: value for name, value in node.items() if name not in ("$defs", "definitions", "$schema")}


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "string"
