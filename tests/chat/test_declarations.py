"""Schemas as MCP servers, Pydantic and others write them, said with what Gemma's template shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal, Optional, Union

import llm
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llm_diffusiongemma.chat.declarations import declare, simplify
from llm_diffusiongemma.chat.prompt import PromptEncoder
from llm_diffusiongemma.chat.template import ChatTemplate

from ..tokenizers import ours

Schema = dict[str, Any]

TOKENIZER = ours()
TEMPLATE = ChatTemplate(TOKENIZER.chat_template, TOKENIZER.special_tokens)
QUOTE = '<|"|>'
NULL = {"type": "null"}


def function(schema: Any, description: str = "d") -> dict[str, Any]:
    (declaration,) = declare([llm.Tool("f", description, schema)])
    declared: dict[str, Any] = declaration["function"]
    return declared


def embedded(declared: dict[str, Any]) -> str:
    """What the embedded checkpoint's template makes of a function, between its name and the end."""
    text = TEMPLATE.render(
        [{"role": "user", "content": "Hi"}],
        tools=[{"type": "function", "function": declared}],
        enable_thinking=False,
        input_characters=0,
    )
    return re.search(r"<\|tool>declaration:f(.*)<tool\|>", text, re.DOTALL)[1]


def official(declared: dict[str, Any]) -> str:
    """What the official checkpoint's template makes of it, by the rules that its renderings show.

    What it garbles is garbled here: types that are no text, objects without properties, values of numbers,
    arrays in arrays, a schema without a type.
    """
    parameters = declared["parameters"]
    text = f"{{description:{quoted(declared['description'])}"
    if parameters:
        shown = [f"properties:{{{_parameters(parameters['properties'])}}}"] if parameters.get("properties") else []
        shown += [f"required:{literal(parameters['required'])}"] if parameters.get("required") else []
        text += f",parameters:{{{''.join(f'{each},' for each in shown)}"
        text += f"type:{quoted(str(parameters['type']).upper())}}}" if parameters.get("type") else ""
    return f"{text}}}"


def _parameters(properties: Schema) -> str:
    return ",".join(f"{name}:{{{','.join(_parameter(node))}}}" for name, node in by_name(properties))


def _parameter(node: Any) -> Iterator[str]:
    node = node if isinstance(node, dict) else {}
    kind = str(node.get("type", "")).upper()
    if node.get("description"):
        yield f"description:{quoted(str(node['description']))}"
    if kind == "STRING" and node.get("enum"):
        yield f"enum:{literal(node['enum'])}"
    if kind == "ARRAY" and isinstance(node.get("items"), dict) and node["items"]:
        yield f"items:{{{','.join(_of_items(node['items']))}}}"
    if node.get("nullable"):
        yield "nullable:true"
    if kind == "OBJECT":
        shown = ("description", "type", "properties", "required", "nullable")
        others = {name: value for name, value in node.items() if name not in shown}
        yield f"properties:{{{_parameters(node.get('properties', others))}}}"
        if node.get("required"):
            yield f"required:{literal(node['required'])}"
    yield f"type:{quoted(kind)}"


def _of_items(items: Schema) -> Iterator[str]:
    for name, value in by_name(items):
        if name == "properties":
            yield f"properties:{{{_parameters(value)}}}"
        elif name == "type":
            yield f"type:{literal(value.upper() if isinstance(value, str) else [each.upper() for each in value])}"
        elif value is not None:
            yield f"{name}:{literal(value)}"


def literal(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"{{{','.join(f'{quoted(name)}:{literal(each)}' for name, each in by_name(value))}}}"
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    return str(value)


def quoted(text: str) -> str:
    return f"{QUOTE}{text}{QUOTE}"


def by_name(mapping: Schema) -> list[tuple[str, Any]]:
    return sorted(mapping.items(), key=lambda item: item[0].lower())


def parsed(text: str) -> Any:
    """The value that a declaration spells. Strict: raises `ValueError` for what isn't well-formed."""
    tokens = [token for token in re.split(r'(<\|"\|>.*?<\|"\|>|[{}\[\],:])', text, flags=re.DOTALL) if token]

    def take(expected: str | None = None) -> str:
        token = tokens.pop(0) if tokens else ""
        if expected is not None and token != expected:
            raise ValueError(f"{token!r} where {expected!r} should be")
        return token

    def unquoted(token: str) -> str:
        return token.removeprefix(QUOTE).removesuffix(QUOTE)

    def value() -> Any:
        token = take()
        if token in ("{", "["):
            closing = "}" if token == "{" else "]"
            items: list[Any] = []
            names: list[str] = []
            while tokens[:1] != [closing]:
                if items:
                    take(",")
                if token == "{":
                    names.append(unquoted(take()))
                    take(":")
                items.append(value())
            take(closing)
            if token == "[":
                return items
            if len(set(names)) < len(names):
                raise ValueError(f"a name twice among {names}")
            return dict(zip(names, items, strict=True))
        if token.startswith(QUOTE):
            return unquoted(token)
        if token != "true":
            raise ValueError(f"{token!r} is not taught")
        return True

    found = value()
    if tokens:
        raise ValueError(f"{''.join(tokens)!r} behind the end")
    return found


# Schema, and how the embedded checkpoint shows it, with ' for the token of a quotation mark.
CASES: dict[str, tuple[Schema, str]] = {
    "FastMCP: a required string": (
        {
            "properties": {"city": {"title": "City", "type": "string"}},
            "required": ["city"],
            "title": "weatherArguments",
            "type": "object",
        },
        ("{description:'d',parameters:{properties:{city:{type:'STRING'}},required:['city'],type:'OBJECT'}}"),
    ),
    "FastMCP: Optional[int] = None": (
        {
            "properties": {
                "days": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "Days"}
            },
            "title": "fArguments",
            "type": "object",
        },
        ("{description:'d',parameters:{properties:{days:{nullable:true,type:'INTEGER'}},type:'OBJECT'}}"),
    ),
    "FastMCP: a description and bounds by Field": (
        {
            "properties": {
                "limit": {
                    "default": 10,
                    "description": "Rows to return",
                    "maximum": 100,
                    "minimum": 1,
                    "title": "Limit",
                    "type": "integer",
                }
            },
            "type": "object",
        },
        (
            "{description:'d',"
            "parameters:{properties:{limit:{description:'Rows to return (1 to 100; default: 10)',"
            "type:'INTEGER'}},type:'OBJECT'}}"
        ),
    ),
    "FastMCP: dict": (
        {
            "properties": {"data": {"additionalProperties": True, "title": "Data", "type": "object"}},
            "required": ["data"],
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{data:{description:'(any keys)',properties:{},"
            "type:'OBJECT'}},required:['data'],type:'OBJECT'}}"
        ),
    ),
    "FastMCP: dict[str, int]": (
        {
            "properties": {
                "counts": {"additionalProperties": {"type": "integer"}, "title": "Counts", "type": "object"}
            },
            "type": "object",
        },
        (
            "{description:'d',"
            "parameters:{properties:{counts:{description:'(any keys; each value: integer)',"
            "properties:{},type:'OBJECT'}},type:'OBJECT'}}"
        ),
    ),
    "FastMCP: str | list[str]": (
        {
            "properties": {
                "ids": {
                    "anyOf": [{"type": "string"}, {"items": {"type": "string"}, "type": "array"}],
                    "title": "Ids",
                }
            },
            "required": ["ids"],
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{ids:{description:'(or: array of string)',"
            "type:'STRING'}},required:['ids'],type:'OBJECT'}}"
        ),
    ),
    "FastMCP: Any": (
        {"properties": {"value": {"title": "Value"}}, "required": ["value"], "type": "object"},
        ("{description:'d',parameters:{properties:{value:{type:'ANY'}},required:['value'],type:'OBJECT'}}"),
    ),
    "FastMCP: no parameters": (
        {"properties": {}, "title": "nowArguments", "type": "object"},
        "{description:'d',parameters:{properties:{},type:'OBJECT'}}",
    ),
    "Pydantic: a class of its own, twice": (
        {
            "$defs": {
                "Place": {
                    "description": "A place.",
                    "properties": {"name": {"type": "string"}},
                    "required": ["name"],
                    "title": "Place",
                    "type": "object",
                }
            },
            "properties": {
                "end": {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}], "default": None},
                "start": {"$ref": "#/$defs/Place", "description": "Where it begins."},
            },
            "required": ["start"],
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{end:{description:'A place.',nullable:true,"
            "properties:{name:{type:'STRING'}},required:['name'],type:'OBJECT'},"
            "start:{description:'Where it begins. A place.',properties:{name:{type:'STRING'}},"
            "required:['name'],type:'OBJECT'}},required:['start'],type:'OBJECT'}}"
        ),
    ),
    "Pydantic: Enum and IntEnum": (
        {
            "$defs": {
                "Colour": {"enum": ["red", "blue"], "title": "Colour", "type": "string"},
                "Level": {"enum": [1, 2, 3], "title": "Level", "type": "integer"},
            },
            "properties": {
                "colour": {"$ref": "#/$defs/Colour", "default": "red"},
                "level": {"$ref": "#/$defs/Level"},
            },
            "required": ["level"],
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{colour:{description:'(default: \"red\")',"
            "enum:['red','blue'],type:'STRING'},level:{description:'(one of 1, 2, 3)',"
            "type:'INTEGER'}},required:['level'],type:'OBJECT'}}"
        ),
    ),
    "Pydantic: Literal of several types": (
        {"properties": {"size": {"enum": ["auto", 1, 2.5, True, None]}}, "type": "object"},
        (
            "{description:'d',parameters:{properties:{size:{description:'(one of \"auto\", 1, 2.5,"
            " true)',nullable:true,type:'STRING'}},type:'OBJECT'}}"
        ),
    ),
    "Pydantic: a tree": (
        {
            "$defs": {
                "Node": {
                    "properties": {
                        "children": {"items": {"$ref": "#/$defs/Node"}, "type": "array"},
                        "value": {"type": "integer"},
                    },
                    "required": ["value"],
                    "title": "Node",
                    "type": "object",
                }
            },
            "$ref": "#/$defs/Node",
        },
        (
            "{description:'d',parameters:{properties:{children:{items:{description:'(Node again)',"
            "properties:{},type:'OBJECT'},type:'ARRAY'},value:{type:'INTEGER'}},required:['value'],"
            "type:'OBJECT'}}"
        ),
    ),
    "Pydantic: a discriminated union": (
        {
            "$defs": {
                "Circle": {
                    "properties": {
                        "kind": {"const": "circle", "type": "string"},
                        "radius": {"exclusiveMinimum": 0, "type": "number"},
                    },
                    "required": ["kind", "radius"],
                    "title": "Circle",
                    "type": "object",
                },
                "Square": {
                    "properties": {"kind": {"const": "square", "type": "string"}, "side": {"type": "number"}},
                    "required": ["kind", "side"],
                    "title": "Square",
                    "type": "object",
                },
            },
            "properties": {
                "shape": {
                    "discriminator": {
                        "mapping": {"circle": "#/$defs/Circle", "square": "#/$defs/Square"},
                        "propertyName": "kind",
                    },
                    "oneOf": [{"$ref": "#/$defs/Circle"}, {"$ref": "#/$defs/Square"}],
                }
            },
            "required": ["shape"],
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{shape:{description:'(required: kind,"
            " radius; or: kind, side)',properties:{kind:{enum:['circle','square'],type:'STRING'},"
            "radius:{description:'(more than 0)',type:'NUMBER'},side:{type:'NUMBER'}},"
            "required:['kind'],type:'OBJECT'}},required:['shape'],type:'OBJECT'}}"
        ),
    ),
    "Pydantic: strings with a length, a pattern, a format": (
        {
            "properties": {
                "code": {
                    "examples": ["DE", "FR"],
                    "maxLength": 2,
                    "minLength": 2,
                    "pattern": "^[A-Z]+$",
                    "type": "string",
                },
                "on": {"format": "date", "type": "string"},
            },
            "required": ["code", "on"],
            "type": "object",
        },
        (
            "{description:'d',"
            'parameters:{properties:{code:{description:\'(exactly 2 characters; pattern: ^[A-Z]+$; e.g. "DE",'
            " \"FR\")',type:'STRING'},on:{description:'(format: date)',type:'STRING'}},"
            "required:['code','on'],type:'OBJECT'}}"
        ),
    ),
    "Pydantic: tuples and sets": (
        {
            "properties": {
                "point": {
                    "maxItems": 2,
                    "minItems": 2,
                    "prefixItems": [{"type": "number"}, {"type": "number"}],
                    "type": "array",
                },
                "row": {
                    "maxItems": 2,
                    "minItems": 2,
                    "prefixItems": [{"type": "integer"}, {"type": "string"}],
                    "type": "array",
                },
                "tags": {"items": {"type": "string"}, "type": "array", "uniqueItems": True},
            },
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{point:{description:'(exactly 2 items)',"
            "items:{type:'NUMBER'},type:'ARRAY'},"
            "row:{description:'(exactly 2 items; in this order: integer, string)',"
            "items:{description:'(or: string)',type:'INTEGER'},type:'ARRAY'},"
            "tags:{description:'(no item twice)',items:{type:'STRING'},type:'ARRAY'}},type:'OBJECT'}}"
        ),
    ),
    "Pydantic 1: allOf for a reference with a description": (
        {
            "definitions": {"Mode": {"description": "How to run.", "enum": ["fast", "slow"], "type": "string"}},
            "properties": {
                "mode": {"allOf": [{"$ref": "#/definitions/Mode"}], "default": "fast", "title": "Mode"}
            },
            "type": "object",
        },
        (
            "{description:'d',"
            "parameters:{properties:{mode:{description:'How to run. (default: \"fast\")',enum:['fast',"
            "'slow'],type:'STRING'}},type:'OBJECT'}}"
        ),
    ),
    "zod: an optional enum, an int, a literal": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "additionalProperties": False,
            "properties": {
                "kind": {"const": "page", "type": "string"},
                "order": {"description": "Sort order", "enum": ["asc", "desc"], "type": "string"},
                "page": {"exclusiveMinimum": 0, "maximum": 9007199254740991, "type": "integer"},
            },
            "required": ["kind"],
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{kind:{enum:['page'],type:'STRING'},"
            "order:{description:'Sort order',enum:['asc','desc'],type:'STRING'},"
            "page:{description:'(more than 0)',type:'INTEGER'}},required:['kind'],type:'OBJECT'}}"
        ),
    ),
    "zod: nullable as a list of types": (
        {
            "properties": {"cursor": {"type": ["string", "null"]}, "id": {"type": ["string", "number"]}},
            "required": ["id", "cursor"],
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{cursor:{nullable:true,type:'STRING'},"
            "id:{description:'(or: number)',type:'STRING'}},required:['id','cursor'],type:'OBJECT'}}"
        ),
    ),
    "zod-to-json-schema: a named schema, and a reference into it": (
        {
            "$ref": "#/definitions/Move",
            "definitions": {
                "Move": {
                    "properties": {
                        "from": {"properties": {"x": {"type": "number"}}, "required": ["x"], "type": "object"},
                        "to": {"$ref": "#/definitions/Move/properties/from"},
                    },
                    "required": ["from", "to"],
                    "type": "object",
                }
            },
        },
        (
            "{description:'d',parameters:{properties:{from:{properties:{x:{type:'NUMBER'}},"
            "required:['x'],type:'OBJECT'},to:{properties:{x:{type:'NUMBER'}},required:['x'],"
            "type:'OBJECT'}},required:['from','to'],type:'OBJECT'}}"
        ),
    ),
    "zod-to-json-schema: recursion by its place": (
        {
            "properties": {
                "filter": {
                    "properties": {
                        "all": {"items": {"$ref": "#/properties/filter"}, "type": "array"},
                        "field": {"type": "string"},
                    },
                    "type": "object",
                }
            },
            "type": "object",
        },
        (
            "{description:'d',"
            "parameters:{properties:{filter:{properties:{all:{items:{description:'(the same again)',"
            "properties:{},type:'OBJECT'},type:'ARRAY'},field:{type:'STRING'}},type:'OBJECT'}},"
            "type:'OBJECT'}}"
        ),
    ),
    "zod: a union of literals": (
        {
            "properties": {
                "unit": {"anyOf": [{"const": "m", "type": "string"}, {"const": "ft", "type": "string"}]},
                "zoom": {"anyOf": [{"const": 1, "type": "number"}, {"const": 2, "type": "number"}]},
            },
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{unit:{enum:['m','ft'],type:'STRING'},"
            "zoom:{description:'(one of 1, 2)',type:'NUMBER'}},type:'OBJECT'}}"
        ),
    ),
    "zod: record and passthrough": (
        {
            "properties": {
                "env": {
                    "additionalProperties": {"type": "string"},
                    "propertyNames": {"pattern": "^[A-Z]+$", "type": "string"},
                    "type": "object",
                },
                "meta": {"additionalProperties": {}, "properties": {"id": {"type": "string"}}, "type": "object"},
            },
            "type": "object",
        },
        (
            "{description:'d',"
            "parameters:{properties:{env:{description:'(keys: pattern: ^[A-Z]+$; each value: string)',"
            "properties:{},type:'OBJECT'},meta:{description:'(other keys)',"
            "properties:{id:{type:'STRING'}},type:'OBJECT'}},type:'OBJECT'}}"
        ),
    ),
    "schemars: values with descriptions": (
        {
            "properties": {
                "level": {
                    "oneOf": [
                        {"const": "low", "description": "Quiet.", "type": "string"},
                        {"const": "high", "description": "Loud.", "type": "string"},
                    ]
                }
            },
            "type": "object",
        },
        (
            "{description:'d',"
            "parameters:{properties:{level:{description:'\"low\": Quiet. / \"high\": Loud.',enum:['low',"
            "'high'],type:'STRING'}},type:'OBJECT'}}"
        ),
    ),
    "MCP server: no type at the top": (
        {"properties": {"query": {"description": "What to look for", "type": "string"}}, "required": ["query"]},
        (
            "{description:'d',parameters:{properties:{query:{description:'What to look for',"
            "type:'STRING'}},required:['query'],type:'OBJECT'}}"
        ),
    ),
    "MCP server: an object that anything fits": (
        {"properties": {"params": {"description": "Passed on", "type": "object"}}, "type": "object"},
        (
            "{description:'d',parameters:{properties:{params:{description:'Passed on (any keys)',"
            "properties:{},type:'OBJECT'}},type:'OBJECT'}}"
        ),
    ),
    "MCP server: one of two is needed": (
        {
            "anyOf": [{"required": ["id"]}, {"required": ["name", "owner"]}],
            "properties": {"id": {"type": "integer"}, "name": {"type": "string"}, "owner": {"type": "string"}},
            "type": "object",
        },
        (
            "{description:'d (required: id; or: name, owner)',"
            "parameters:{properties:{id:{type:'INTEGER'},name:{type:'STRING'},owner:{type:'STRING'}},"
            "type:'OBJECT'}}"
        ),
    ),
    "MCP server: rows of cells": (
        {
            "properties": {"values": {"items": {"items": {"type": "string"}, "type": "array"}, "type": "array"}},
            "required": ["values"],
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{values:{items:{items:{type:'STRING'},"
            "type:'ARRAY'},type:'ARRAY'}},required:['values'],type:'OBJECT'}}"
        ),
    ),
    "MCP server: parameters named as keywords": (
        {
            "properties": {
                "description": {"type": "string"},
                "items": {"items": {"type": "integer"}, "type": "array"},
                "properties": {
                    "properties": {"enum": {"type": "string"}, "type": {"type": "string"}},
                    "type": "object",
                },
                "required": {"type": "boolean"},
                "type": {"enum": ["a"], "type": "string"},
            },
            "required": ["type", "missing"],
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{description:{type:'STRING'},"
            "items:{items:{type:'INTEGER'},type:'ARRAY'},"
            "properties:{properties:{enum:{type:'STRING'},type:{type:'STRING'}},type:'OBJECT'},"
            "required:{type:'BOOLEAN'},type:{enum:['a'],type:'STRING'}},required:['type'],"
            "type:'OBJECT'}}"
        ),
    ),
    "MCP server: several parts": (
        {
            "allOf": [
                {"properties": {"page": {"default": 1, "type": "integer"}}},
                {"properties": {"query": {"type": "string"}}, "required": ["query"]},
            ],
            "properties": {"query": {"description": "Words"}},
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{page:{description:'(default: 1)',"
            "type:'INTEGER'},query:{description:'Words',type:'STRING'}},required:['query'],"
            "type:'OBJECT'}}"
        ),
    ),
    "OpenAPI 3.0: nullable, example, int64": (
        {
            "properties": {
                "id": {"example": 7, "format": "int64", "nullable": True, "type": "integer"},
                "old": {"deprecated": True, "type": "boolean"},
            },
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{id:{description:'(e.g. 7)',nullable:true,"
            "type:'INTEGER'},old:{description:'(deprecated)',type:'BOOLEAN'}},type:'OBJECT'}}"
        ),
    ),
    "Google: types in capitals": (
        {"properties": {"at": {"properties": {"lat": {"type": "NUMBER"}}, "type": "OBJECT"}}, "type": "OBJECT"},
        (
            "{description:'d',parameters:{properties:{at:{properties:{lat:{type:'NUMBER'}},"
            "type:'OBJECT'}},type:'OBJECT'}}"
        ),
    ),
    "Boolean schemas and odd keywords": (
        {
            "properties": {
                "any": True,
                "never": False,
                "odd": {
                    "description": ["no", "text"],
                    "enum": [],
                    "items": None,
                    "maximum": "9",
                    "required": "x",
                    "type": "string",
                },
            },
            "required": ["any", "never"],
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{any:{type:'ANY'},odd:{type:'STRING'}},"
            "required:['any'],type:'OBJECT'}}"
        ),
    ),
    "A pointer with escapes, from a definition in a property": (
        {
            "properties": {
                "a/b": {"type": "string"},
                "c d": {"$ref": "#/properties/a~1b"},
                "e": {"$defs": {"100%": {"type": "boolean"}}, "$ref": "#/$defs/100%25"},
            },
            "type": "object",
        },
        (
            "{description:'d',parameters:{properties:{a/b:{type:'STRING'},c d:{type:'STRING'},"
            "e:{type:'BOOLEAN'}},type:'OBJECT'}}"
        ),
    ),
}


@pytest.mark.parametrize(("schema", "expected"), CASES.values(), ids=CASES)
def test_shown(schema: Schema, expected: str) -> None:
    declared = function(schema)
    assert embedded(declared) == expected.replace("'", QUOTE)
    # The official template shows the same but for two things, which are well-formed.
    expected = expected.replace("parameters:{properties:{},", "parameters:{")
    expected = expected.replace("items:{items:{type:'STRING'}", "items:{items:{'type':'string'}")
    assert official(declared) == expected.replace("'", QUOTE)


@pytest.mark.parametrize(
    ("schema", "garbled"),
    [
        ({"type": "object", "properties": {"a": {"type": ["string", "null"]}}}, "['STRING', 'NULL']"),
        ({"type": "object", "properties": {"a": {"type": "object", "title": "A"}}}, "{title:{"),
        ({"properties": {"a": {"type": "string"}}}, "}},}"),
    ],
)
def test_what_the_official_template_would_make_of_a_raw_schema(schema: Schema, garbled: str) -> None:
    """So that the renderer here can be trusted to show what is wrong."""
    shown = official({"name": "f", "description": "d", "parameters": schema})
    assert garbled in shown
    with pytest.raises(ValueError, match=r"where|twice|taught|behind"):
        parsed(shown + ("" if garbled == "}},}" else "!"))


def test_a_function() -> None:
    def weather(city: str, days: int = 1) -> str:
        """The weather in a city."""
        return city * days

    (declaration,) = declare([llm.Tool.function(weather)])
    function = declaration["function"]
    assert (declaration["type"], function["name"]) == ("function", "weather")
    assert function["description"] == "The weather in a city."
    assert function["parameters"]["properties"]["city"]["type"] == "string"
    assert function["parameters"]["required"] == ["city"]


def test_without_a_description() -> None:
    (declaration,) = declare([llm.Tool("now")])
    assert declaration["function"] == {"name": "now", "description": "", "parameters": {}}


def test_the_description_of_all_parameters_is_the_functions() -> None:
    """The template shows none of the parameters as a whole. Pydantic's is often the same text."""
    schema = {"type": "object", "description": "Moves it.", "properties": {}}
    assert function(schema, "Moves a thing.")["description"] == "Moves a thing. Moves it."
    assert function(schema, "Moves it. Slowly.")["description"] == "Moves it. Slowly."
    assert function(schema, "")["description"] == "Moves it."


class Place(BaseModel):
    name: str


class Trip(BaseModel):
    start: Place
    end: Optional[Place] = None  # noqa: UP045
    days: Optional[int] = None  # noqa: UP045
    luggage: Union[int, str] = 0  # noqa: UP007
    by: Literal["train", "bus"] = "train"
    kind: Literal["holiday"] = "holiday"
    stops: list[Place] = []


def test_what_pydantic_writes() -> None:
    shown = simplify(Trip.model_json_schema())["properties"]
    assert shown["start"]["properties"]["name"]["type"] == "string"
    assert shown["end"]["properties"]["name"]["type"] == "string"
    assert shown["end"]["nullable"] is True
    assert (shown["days"]["type"], shown["days"]["nullable"]) == ("integer", True)
    assert shown["luggage"]["type"] == "integer"
    assert "(or: string)" in shown["luggage"]["description"]
    assert shown["by"]["enum"] == ["train", "bus"]
    assert shown["kind"]["enum"] == ["holiday"]
    assert shown["stops"]["items"]["properties"]["name"]["type"] == "string"
    assert "$ref" not in str(shown)
    assert "anyOf" not in str(shown)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, {"type": "any"}),
        (True, {"type": "any"}),
        (NULL, {"type": "null"}),
        ({"items": True}, {"type": "array"}),
        ({"enum": [1, 2]}, {"description": "(one of 1, 2)", "type": "integer"}),
        ({"enum": ["a", None]}, {"enum": ["a"], "nullable": True, "type": "string"}),
        # Declared as a string, so meant as one.
        ({"type": "string", "enum": [1, "1.0"]}, {"enum": ["1", "1.0"], "type": "string"}),
        ({"const": True}, {"description": "(always true)", "type": "boolean"}),
        ({"enum": [True, False]}, {"type": "boolean"}),
        ({"enum": [1, True]}, {"description": "(one of 1, true)", "type": "integer"}),
        ({"const": None}, {"type": "null"}),
        ({"allOf": [{"type": "string"}, {"description": "d"}]}, {"type": "string", "description": "d"}),
        (
            {"allOf": [{"type": "number", "minimum": 1}, {"type": "integer", "maximum": 5}]},
            {"type": "integer", "description": "(1 to 5)"},
        ),
        ({"$ref": "#/$defs/Missing"}, {"type": "any"}),
        ({"$ref": "https://example.com/a.json", "type": "string"}, {"type": "string"}),
        ({"$ref": "#", "type": "string"}, {"type": "string"}),
        # Draft 3 and 4.
        (
            {"type": "number", "minimum": 0, "exclusiveMinimum": True},
            {"type": "number", "description": "(more than 0)"},
        ),
        (
            {"type": "object", "properties": {"a": {"type": "string", "required": True}}},
            {"properties": {"a": {"type": "string"}}, "required": ["a"], "type": "object"},
        ),
        (
            {"type": "array", "items": [{"type": "string"}, {"type": "integer"}]},
            {
                "description": "(in this order: string, integer)",
                "items": {"description": "(or: integer)", "type": "string"},
                "type": "array",
            },
        ),
        (
            {"anyOf": [{"type": "string", "format": "email"}, {"type": "string", "format": "uri"}]},
            {"description": "(or: string, format: uri) (format: email)", "type": "string"},
        ),
        ({"anyOf": [{"type": "string"}, {"const": False}]}, {"description": "(or: false)", "type": "string"}),
        (
            {"anyOf": [{"enum": ["a", "b"]}, {"type": "string"}]},
            {"description": "(or: string)", "enum": ["a", "b"], "type": "string"},
        ),
        (
            {"type": ["array", "string", "null"], "items": {"type": "integer"}},
            {"description": "(or: string)", "items": {"type": "integer"}, "nullable": True, "type": "array"},
        ),
        (
            {"type": ["string", "array"], "items": {"type": "integer"}},
            {"description": "(or: array of integer)", "type": "string"},
        ),
        (
            {
                "anyOf": [
                    {"type": "array", "items": {"type": "string"}},
                    {"type": "array", "items": {"type": "integer"}},
                ]
            },
            {"items": {"description": "(or: integer)", "type": "string"}, "type": "array"},
        ),
        (
            {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"x": {"type": "integer"}}}]},
            {"description": "(or: object with x (integer))", "type": "string"},
        ),
        (
            {"type": "object", "patternProperties": {"^x-": {"type": "string"}}, "minProperties": 1},
            {"description": "(keys like ^x-: string; at least 1 key)", "properties": {}, "type": "object"},
        ),
        (
            {"properties": {"a": True, "b": True}, "dependentRequired": {"a": ["b"]}},
            {
                "description": "(a needs b)",
                "properties": {"a": {"type": "any"}, "b": {"type": "any"}},
                "type": "object",
            },
        ),
        (
            {"type": "integer", "multipleOf": 5, "default": 0},
            {"description": "(multiple of 5; default: 0)", "type": "integer"},
        ),
        ({"type": "array", "minItems": 1, "maxItems": 3}, {"description": "(1 to 3 items)", "type": "array"}),
    ],
)
def test_simplified(schema: Any, expected: Schema) -> None:
    assert simplify(schema) == expected


def test_a_schema_that_contains_itself_is_shown_once() -> None:
    class Node(BaseModel):
        value: int
        children: list[Node] = []
        parent: Node | None = None

    Node.model_rebuild()
    shown = simplify(Node.model_json_schema())
    assert shown["properties"]["children"]["items"] == {
        "description": "(Node again)",
        "properties": {},
        "type": "object",
    }
    assert shown["properties"]["parent"]["nullable"] is True


def test_a_base_class_is_not_recursion() -> None:
    base = {"properties": {"id": {"type": "integer"}}}
    child = {"allOf": [{"$ref": "#/$defs/Base"}, {"properties": {"name": {"type": "string"}}}]}
    parent = {"allOf": [{"$ref": "#/$defs/Base"}, {"properties": {"child": {"$ref": "#/$defs/Child"}}}]}
    shown = simplify({**parent, "$defs": {"Base": base, "Child": child}})
    assert set(shown["properties"]["child"]["properties"]) == {"id", "name"}


def test_what_refers_to_each_other_stays_short_and_loses_no_parameter() -> None:
    """A syntax: twelve kinds of expressions, each made of all of them."""
    kinds = {
        f"Kind{i}": {
            "type": "object",
            "description": "An expression. " * 5,
            "properties": {f"part{j}": {"$ref": f"#/$defs/Kind{j}"} for j in range(12)},
        }
        for i in range(12)
    }
    schema = {
        "$defs": kinds,
        "type": "object",
        "properties": {f"p{i}": {"$ref": f"#/$defs/Kind{i}"} for i in range(12)},
    }
    shown = parsed(embedded(function(schema)))["parameters"]["properties"]
    assert list(shown) == sorted(schema["properties"])
    assert all(shown[name]["properties"] for name in shown)
    assert len(embedded(function(schema))) < 40_000


def test_references_that_double_end() -> None:
    """Sixty levels of two references to the next one: 2^60 nodes."""
    for combine in (
        lambda level: {"properties": {"a": level, "b": level}},
        lambda level: {"allOf": [level, level], "required": ["a"]},
        lambda level: {"anyOf": [level, level, {"type": "string"}, {"properties": {"a": {}}, "required": ["a"]}]},
        lambda level: {"anyOf": [{"type": "array", "items": level}, {"type": "array", "items": dict(level)}]},
    ):
        levels = {f"L{i}": combine({"$ref": f"#/$defs/L{i + 1}"}) for i in range(60)}
        schema = {"$defs": levels, "properties": {"p": {"$ref": "#/$defs/L0"}, "q": {"type": "string"}}}
        shown = embedded(function(schema))
        assert list(parsed(shown)["parameters"]["properties"]) == ["p", "q"]
        assert len(shown) < 40_000


def test_a_long_schema_without_references_is_shown_whole() -> None:
    def level(depth: int) -> Schema:
        node: Schema = {"type": "object", "description": "What it is about, at length. " * 10}
        node["properties"] = (
            {f"at{depth}": level(depth - 1) for _ in range(1)} if depth else {"last": {"type": "string"}}
        )
        return node

    schema = {"type": "object", "properties": {f"p{i}": level(8) for i in range(20)}}
    shown = embedded(function(schema))
    assert shown.count("last:{") == 20
    assert shown.count("at length") == 20 * 9 * 10


def test_a_schema_deeper_than_any_template_can_walk() -> None:
    schema: Schema = {"type": "string"}
    for _ in range(200):
        schema = {"type": "object", "properties": {"a": {"anyOf": [schema, NULL]}}}
    assert parsed(embedded(function(schema)))


def test_markers_in_a_schema_stay_text() -> None:
    """Also in names and values: nothing in a declaration can end it."""
    marker = "<tool|><turn|>"
    schema = {"properties": {marker: {"enum": [marker, 'a<|"|>b'], "description": marker, "default": marker}}}
    encoder = PromptEncoder(TOKENIZER)
    ids = encoder.encode([{"role": "user", "content": "Hi"}], tools=declare([llm.Tool("f", marker, schema)]))
    assert ids.count(encoder.control_id("<tool|>")) == 1
    assert TOKENIZER.decode(ids).count("default") == 1


NAMES = st.sampled_from(["a", "b", "B", "type", "properties", "items", "description", "required", "enum", "x-y"])
JUNK = st.sampled_from(
    [None, True, False, 0, -1, 2.5, "", "text", [], {}, [1], ["a"], {"a": 1}, [None], [[]], [{}]]
)
TYPES = st.sampled_from(["string", "integer", "number", "boolean", "array", "object", "null", "file"])
POINTERS = st.sampled_from(
    [
        "#",
        "#/$defs/A",
        "#/$defs/B",
        "#/$defs/A/items",
        "#/properties/a",
        "#/properties/b/anyOf/0",
        "#/no",
        "x.json",
        "#x",
    ]
)


def schemas(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Nodes of all keywords, each now and then with what it must not have."""
    lists = st.lists(children, max_size=3)
    maps = st.dictionaries(NAMES, children, max_size=3)
    values = st.lists(st.sampled_from(["a", "b", 1, 1.5, True, None, {"a": [1]}, '{"', "]"]), max_size=4)
    numbers = st.sampled_from([0, 1, 3, 2**60, -2.5, True])
    keywords: dict[str, st.SearchStrategy[Any]] = {
        "type": TYPES | st.lists(TYPES, max_size=3),
        "$ref": POINTERS,
        "items": children | lists,
        "enum": values,
        "examples": values,
        "required": st.lists(NAMES, max_size=3) | st.booleans(),
        "description": st.sampled_from(["What it is.", " ", "{", "a, b: [c"]),
        **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), maps),
        **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), lists),
        **dict.fromkeys(("additionalProperties", "propertyNames", "not", "contains"), children),
        **dict.fromkeys(
            ("default", "const", "title", "format", "pattern", "nullable", "deprecated", "example"), JUNK
        ),
        **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), numbers),
        **dict.fromkeys(
            ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "dependentRequired"), numbers
        ),
    }
    optional = {name: strategy | JUNK for name, strategy in keywords.items()}
    some = st.lists(st.sampled_from(sorted(optional)), max_size=5, unique=True)
    return some.flatmap(lambda names: st.fixed_dictionaries({name: optional[name] for name in names}))


SCHEMAS = st.recursive(st.booleans() | st.fixed_dictionaries({"type": TYPES}), schemas, max_leaves=12)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(NAMES, SCHEMAS, max_size=5), st.dictionaries(st.sampled_from("AB"), SCHEMAS), SCHEMAS)
def test_any_schema_is_shown_well_formed(properties: Schema, definitions: Schema, rest: Any) -> None:
    schema = {**(rest if isinstance(rest, dict) else {}), "$defs": definitions, "properties": properties}
    schema.pop("required", None)
    declared = function(schema)
    for shown in (embedded(declared), official(declared)):
        parameters = parsed(shown)["parameters"]
        # What other parts of the schema declare comes on top; what can't be given is left out.
        wanted = {name for name, child in properties.items() if child is not False}
        assert wanted <= set(parameters.get("properties", {}))
        assert parameters["type"] == "OBJECT"
        assert len(shown) < 20_000 + 6 * len(json.dumps(schema))


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEMAS | JUNK)
def test_no_keyword_is_shown_that_templates_do_not_know(schema: Any) -> None:
    waiting = [simplify(schema)]
    while waiting:
        node = waiting.pop()
        assert node.keys() <= {"description", "enum", "items", "nullable", "properties", "required", "type"}
        assert isinstance(node["type"], str)
        assert node.get("nullable", True) is True
        assert all(isinstance(value, str) for value in node.get("enum", []))
        assert ("properties" in node) == (node["type"] == "object")
        assert set(node.get("required", ())) <= set(node.get("properties", ()))
        waiting += [*node.get("properties", {}).values(), *([node["items"]] if "items" in node else [])]


@pytest.mark.parametrize("keyword", ["propertyNames", "additionalProperties", "patternProperties", "items", "not"])
def test_a_schema_that_is_its_own_part(keyword: str) -> None:
    """Of the names of a schema's keys themselves it went round for ever."""
    again: Any = {"$ref": "#"}
    shown = simplify({keyword: {"^a": again} if keyword == "patternProperties" else again})
    assert isinstance(shown["type"], str)
