"""What people hand over as a JSON schema, and what it is made."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from llm_diffusiongemma.backends.form import read_form
from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar.habits import unwrapped
from llm_diffusiongemma.grammar.schema import compile_schema, schema_language

from .test_dialects import DRAFT_4, DRAFT_7, DRAFT_2020

PERSON = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "wrapper",
    [
        {"name": "person", "strict": True, "schema": PERSON},
        {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
        {"type": "json_schema", "name": "person", "schema": PERSON},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": PERSON}}},
        {"name": "person", "description": "Of whom?", "parameters": PERSON},
        {"type": "function", "function": {"name": "person", "description": "Of whom?", "parameters": PERSON}},
        {"name": "person", "input_schema": PERSON},
        {"name": "person", "title": "Person", "inputSchema": PERSON, "annotations": {"readOnlyHint": True}},
        {"schema": PERSON},
    ],
)
def test_a_wrapper_is_taken_off(wrapper: dict[str, Any]) -> None:
    before = copy.deepcopy(wrapper)
    assert unwrapped(wrapper) == PERSON
    dfa = schema_language(wrapper)
    assert dfa.accepts(b'{"a": "b"}')
    assert not dfa.accepts(b"5")
    assert wrapper == before


def test_a_prompt_shows_the_schema_without_its_wrapper() -> None:
    wrapped, plain = read_form({"name": "person", "schema": PERSON}, None, None), read_form(PERSON, None, None)
    assert wrapped is not None
    assert plain is not None
    assert wrapped.request == plain.request


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        {"type": "object", "schema": PERSON},
        {"required": ["schema"], "parameters": PERSON},
        {"properties": {"schema": PERSON}},
        {"schema": PERSON, "parameters": PERSON},
        {"schema": "http://a.b/c"},
        {"$ref": "#/schema", "schema": PERSON},
    ],
)
def test_what_no_wrapper_is_stays(schema: Any) -> None:
    assert unwrapped(schema) is schema


@pytest.mark.parametrize(
    ("schema", "cause"),
    [
        ({"name": "person", "fields": ["a"]}, "'name' is no keyword .* such as type or properties"),
        ({"title": "x", "Person": {"a": "string"}}, "'Person' is no keyword .* such as type or properties"),
        ({"parameters": {"a": {"b": PERSON}}}, "'a' is no keyword .* such as type or properties"),
        ({"name": "person", "parameters": {"a": {"type": "string"}}}, "If 'a' is a property"),
        ({"schema": PERSON, "parameters": PERSON}, "Nothing in the schema says what a reply must be"),
    ],
)
def test_a_schema_that_says_nothing_is_named(schema: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConstraintError, match=cause):
        schema_language(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"title": "x"},
        {"$defs": {"a": PERSON}},
        {"description": "", "default": 1},
        {"title": "x", "Person": PERSON},
        {"shapes": {"all": [PERSON]}},
    ],
)
def test_a_schema_of_anything(schema: dict[str, Any]) -> None:
    assert schema_language(schema).accepts(b"5")


SHAPES = {"definitions": {"s": {"type": "string"}, "n": {"type": "string", "nullable": True}}}


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        ({"type": "string", "nullable": True}, ["a", None], [1]),
        ({"type": ["string", "integer"], "nullable": True}, ["a", 1, None], [True]),
        ({"type": "string", "nullable": False}, ["a"], [None]),
        ({"type": "string", "enum": ["a"], "nullable": True}, ["a", None], ["b"]),
        ({"type": "string", "minLength": 2, "pattern": "^a", "nullable": True}, ["ab", None], ["a"]),
        ({**SHAPES, "$ref": "#/definitions/s", "nullable": True}, ["a", None], [1]),
        ({**SHAPES, "allOf": [{"$ref": "#/definitions/s"}], "nullable": True}, ["a", None], [1]),
        ({**SHAPES, "anyOf": [{"$ref": "#/definitions/s"}], "nullable": True}, ["a", None], [1]),
        ({**SHAPES, "oneOf": [{"$ref": "#/definitions/s"}, {"type": "null"}], "nullable": True}, ["a", None], [1]),
        ({**SHAPES, "anyOf": [{}], "$ref": "#/definitions/s", "nullable": True}, ["a", None], [1]),
        ({**SHAPES, "$ref": "#/definitions/n"}, ["a", None], [1]),
        ({"components": {"schemas": SHAPES["definitions"]}, "$ref": "#/components/schemas/n"}, ["a", None], [1]),
        ({"type": "integer", "const": 1, "nullable": True}, [1, None], [2]),
        # What stands in values is no keyword.
        ({"enum": [{"type": "string", "nullable": True}]}, [{"type": "string", "nullable": True}], [None]),
        (
            {"type": "object", "properties": {"nullable": {"type": "string"}}, "required": ["nullable"]},
            [{"nullable": "a"}],
            [None, {}],
        ),
        # A schema that names its draft is read by that draft.
        ({"$schema": DRAFT_2020, "type": "string", "nullable": True}, ["a"], [None]),
        ({"$schema": DRAFT_7, "type": "string", "nullable": True}, ["a"], [None]),
        # Bounds of OpenAPI 3.0 and draft 4.
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, [4], [3]),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": False}, [3], [2]),
        ({"type": "integer", "maximum": 3, "exclusiveMaximum": True}, [2], [3]),
        ({"type": "integer", "exclusiveMaximum": False}, [2], ["a"]),
        ({"type": "integer", "exclusiveMaximum": 3}, [2], [3]),
        # Lists under items, and dependencies, as they were before 2020-12.
        (
            {"type": "array", "items": [{"type": "string"}, {"type": "null"}], "additionalItems": False},
            [["a"], ["a", None]],
            [[None], ["a", None, 1]],
        ),
        ({"type": "array", "items": [], "additionalItems": {"type": "null"}}, [[None]], [[1]]),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
                "dependencies": {"a": ["b"], "b": {"maxProperties": 2}},
            },
            [{}, {"b": None}, {"a": None, "b": None}],
            [{"a": None}],
        ),
        (
            {"$schema": DRAFT_2020, "type": "object", "properties": {"a": {}}, "dependencies": {"a": ["b"]}},
            [{"a": 1}],
            [],
        ),
        ({"$schema": DRAFT_4, "type": "integer", "minimum": 3, "exclusiveMinimum": True}, [4], [3]),
    ],
)
def test_habits(schema: dict[str, Any], inside: list[Any], outside: list[Any]) -> None:
    compiled = compile_schema(schema)
    for values, expected in ((inside, True), (outside, False)):
        for value in values:
            assert compiled.dfa.accepts(json.dumps(value).encode()) is expected, value
            assert compiled.validator.is_valid(value) is expected, value


def test_an_enum_of_many_values() -> None:
    values = [*range(1500), *({"a": number} for number in range(1500)), True, None]
    judge = compile_schema({"$schema": DRAFT_4, "enum": values, "type": "null"}).validator
    assert judge.is_valid(None)
    for valid, invalid in (([True], [False]), ([1, 1.0], [1500]), ([{"a": 1.0}], [{"a": True}, [1]])):
        judge = judge.evolve(schema={"enum": values[1:]})
        assert all(map(judge.is_valid, valid))
        assert not any(map(judge.is_valid, invalid))
