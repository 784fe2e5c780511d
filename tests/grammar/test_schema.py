"""JSON schema as a language: sound always, complete where a keyword counts as enforced, refused by name else."""

from __future__ import annotations

import bisect
import datetime
import functools
import inspect
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar import compiler
from llm_diffusiongemma.grammar.dfa import ByteDFA
from llm_diffusiongemma.grammar.language import MAX_STATES
from llm_diffusiongemma.grammar.places import LIMITS
from llm_diffusiongemma.grammar.records import Lowered
from llm_diffusiongemma.grammar.samples import random_texts
from llm_diffusiongemma.grammar.schema import compile_schema, schema_language
from tests.grammar.formats import format_checker
from tests.grammar.schemas import SCHEMAS
from tests.grammar.walks import check_promises
from tests.grammar.wild import in_decimals

CHECKER = format_checker()


def check_walks(schema: Any, count: int, soft_length: int = 60) -> ByteDFA:
    """Compile the schema; fails if a random text of the language isn't JSON that is valid by it.

    Neither jsonschema as it comes, formats included, nor a reply's final check may find anything.
    """
    compiled = compile_schema(schema)
    dialect = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator = in_decimals(dialect)(schema, format_checker=CHECKER)
    for text in random_texts(compiled.dfa, count, soft_length=soft_length):
        document = json.loads(text, parse_constant=pytest.fail)
        assert not [error.message for error in validator.iter_errors(document)], text
        assert compiled.validator.is_valid(document), text
    return compiled.dfa


def text_of(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize("name", SCHEMAS)
def test_real_world_schemas_are_sound(name: str) -> None:
    dfa = check_walks(SCHEMAS[name], 8)
    assert len(dfa.accepting) <= MAX_STATES
    if len(dfa.accepting) < 200:
        check_promises(dfa)


def test_there_are_schemas_enough() -> None:
    assert len(SCHEMAS) >= 40


# Completeness: schemas of enforced keywords, made together with values that are valid by them.

Maker = Callable[[], Any]


def random_text(rng: random.Random, least: int, most: int) -> str:
    letters = 'ab z"\\/\n\t\b\f\r\x7fé߿ࠀ\ud7ff\ue000￿\U00010000😀\U0010ffff'
    return "".join(rng.choice(letters) for _ in range(rng.randint(least, most)))


def scalar_case(rng: random.Random) -> tuple[dict[str, Any], Maker]:
    low = rng.choice([-1000, -20, -1, 0, 1, 7, 95])
    high = low + rng.choice([0, 3, 10, 999, 12345])
    least = rng.randint(0, 3)
    choices = rng.sample([1, 2.5, "x", "ü\u0001", None, True, -7], 3)
    inside = {"minimum": low, "maximum": high}
    outside = {"exclusiveMinimum": low, "exclusiveMaximum": high + 2}
    return rng.choice(
        [
            ({"type": "string"}, lambda: random_text(rng, 0, 8)),
            (
                {"type": "string", "minLength": least, "maxLength": least + 2},
                lambda: random_text(rng, least, least + 2),
            ),
            ({"type": "string", "maxLength": least}, lambda: random_text(rng, 0, least)),
            ({"type": "string", "minLength": least}, lambda: random_text(rng, least, 9)),
            ({"type": "string", "pattern": "^[a-c]+$"}, lambda: "".join(rng.choices("abc", k=rng.randint(1, 5)))),
            (
                {"type": "string", "pattern": "[xy]\\d"},
                lambda: random_text(rng, 0, 3) + "x7" + random_text(rng, 0, 3),
            ),
            ({"type": "string", "pattern": "^a", "maxLength": 4}, lambda: "a" + random_text(rng, 0, 3)),
            (
                {"type": "string", "format": "date"},
                lambda: datetime.date.fromordinal(rng.randint(1, datetime.date.max.toordinal())).isoformat(),
            ),
            (
                {"type": "string", "format": "date-time"},
                lambda: datetime.datetime.fromtimestamp(rng.random() * 1e9, datetime.UTC).isoformat(),
            ),
            ({"type": "string", "format": "uuid"}, lambda: f"{rng.getrandbits(128):032x}".replace("x", "")),
            ({"type": "string", "format": "ipv4"}, lambda: ".".join(str(rng.randint(0, 255)) for _ in range(4))),
            ({"type": "string", "format": "email"}, lambda: f"a.b+c{rng.randint(0, 99)}@mail.example.org"),
            ({"type": "integer"}, lambda: rng.randint(-(10**20) + 1, 10**20 - 1)),
            ({"type": "integer", **inside}, lambda: rng.randint(low, high)),
            ({"type": "integer", **outside}, lambda: rng.randint(low + 1, high + 1)),
            ({"type": "integer", "minimum": low}, lambda: low + rng.randint(0, 10**6)),
            (
                {"type": "integer", "multipleOf": 5, "maximum": high},
                lambda: high // 5 * 5 - 5 * rng.randint(0, 1000),
            ),
            (
                {"type": "number"},
                lambda: float(f"{rng.uniform(-9, 9):.{rng.randint(1, 15)}g}e{rng.choice([0, 5, -20, 70])}"),
            ),
            ({"type": "number", **inside}, lambda: round(rng.uniform(low, high), rng.randint(0, 6)) or 0),
            ({"type": "boolean"}, lambda: rng.choice([True, False])),
            ({"type": "null"}, lambda: None),
            ({"enum": choices}, lambda: rng.choice(choices)),
            ({"const": choices[0]}, lambda: choices[0]),
            ({"type": ["integer", "null", "string"]}, lambda: rng.choice([None, 5, "a"])),
        ]
    )


def random_case(rng: random.Random, depth: int) -> tuple[dict[str, Any], Maker]:
    if depth == 0:
        return scalar_case(rng)
    cases = [random_case(rng, depth - 1) for _ in range(3)]
    schemas, makers = [schema for schema, _ in cases], [maker for _, maker in cases]
    least = rng.randint(0, 2)

    def array() -> list[Any]:
        return [makers[0]() for _ in range(rng.randint(least, least + 2))]

    names = rng.sample(["a", "b c", 'q"', "ü"], 3)
    required = rng.sample(names, rng.randint(0, 3))

    def members() -> dict[str, Any]:
        return {
            name: make()
            for name, make in zip(names, makers, strict=True)
            if name in required or rng.random() < 0.5
        }

    record = {"type": "object", "properties": dict(zip(names, schemas, strict=True)), "required": required}
    return rng.choice(
        [
            ({"type": "array", "items": schemas[0], "minItems": least, "maxItems": least + 2}, array),
            ({"type": "array", "items": schemas[0], "minItems": least}, array),
            ({"prefixItems": schemas[:2], "items": False, "type": "array"}, lambda: [makers[0](), makers[1]()]),
            (
                {"type": "array", "prefixItems": schemas[:2], "items": schemas[2]},
                lambda: [make() for make in makers],
            ),
            (record, members),
            ({**record, "additionalProperties": False}, members),
            ({"anyOf": schemas}, lambda: rng.choice(makers)()),
            ({"allOf": [record, {"type": ["object", "null"]}]}, members),
            ({"$defs": {"x": schemas[0]}, "anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}]}, makers[0]),
            ({"type": "object", "additionalProperties": schemas[0]}, lambda: {"k": makers[0](), "é": makers[0]()}),
        ]
    )


@pytest.mark.parametrize("seed", range(30))
def test_random_schemas_are_sound_and_accept_their_instances(seed: int) -> None:
    rng = random.Random(seed)
    schema, make = random_case(rng, depth=seed % 3)
    # A $ref starts at the root, and the definitions that the cases above bring are not there.
    dfa = check_walks(inlined(schema), 20, soft_length=30)
    for _ in range(20):
        value = make()
        if not jsonschema.Draft202012Validator(inlined(schema), format_checker=CHECKER).is_valid(value):
            continue
        for text in (text_of(value), json.dumps(value, ensure_ascii=False, indent=2).encode()):
            assert dfa.accepts(text), (schema, text)


def inlined(schema: Any) -> Any:
    """The schema with its definitions put in for its $refs, except where it has both at its own top."""

    def walk(part: Any, top: bool) -> Any:
        if isinstance(part, dict):
            if not top and "$defs" in part:
                part = {**part, "anyOf": [part["$defs"]["x"], *part["anyOf"][1:]]}
                del part["$defs"]
            return {key: walk(value, False) for key, value in part.items()}
        return [walk(value, False) for value in part] if isinstance(part, list) else part

    return walk(schema, True)


# Keyword by keyword: texts that belong to the language and texts that don't.

OBJECT = {"type": "object"}
AB = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}

KEYWORDS: list[tuple[str, Any, list[str], list[str]]] = [
    ("true", True, ["1", '"a"', "[[[[1]]]]", '{"a": {"b": [1]}}'], ["[[[[[1]]]]]", "x", ""]),
    ("type", {"type": ["integer", "null"]}, ["1", "-5", "null"], ["1.0", "-0", "01", '"1"', "true"]),
    ("number", {"type": "number"}, ["1", "1.5", "-0.25e-7", "1E5"], [".5", "1.", "01", "+1", "1e400", "NaN"]),
    ("string", {"type": "string"}, ['"a\\n\\"é"', '""'], ['"\n"', '"\\x"', '"\\ud800"', '"', "a"]),
    ("const", {"const": {"a": [1, None]}}, ['{"a": [1, null]}'], ['{"a": [1]}', "{}"]),
    ("enum", {"type": "string", "enum": ["a", 1, "b"]}, ['"a"', '"b"'], ["1"]),
    ("enum minLength", {"enum": ["a", "bb"], "minLength": 2}, ['"bb"'], ['"a"']),
    ("enum not", {"enum": ["a", "b"], "not": {"const": "a"}}, ['"b"'], ['"a"']),
    ("enum if", {"enum": [1, 20], "if": {"minimum": 10}, "then": {"minimum": 30}}, ["1"], ["20"]),
    ("enum oneOf", {"enum": [1, 2, 3], "oneOf": [{"minimum": 2}, {"maximum": 2}]}, ["1", "3"], ["2"]),
    ("minLength", {"type": "string", "minLength": 2, "maxLength": 3}, ['"éé"', '"\\n\\"😀"'], ['"é"', '"aaaa"']),
    ("pattern", {"type": "string", "pattern": "b.d"}, ['"abcde"', '"b\\"d"'], ['"bd"', '"b\\nd"']),
    (
        "pattern and length",
        {"type": "string", "pattern": "^a+$", "maxLength": 2},
        ['"aa"'],
        ['"aaa"', '"b"', '""'],
    ),
    ("patterns", {"type": "string", "allOf": [{"pattern": "a"}, {"pattern": "b"}]}, ['"ba"'], ['"a"', '"b"']),
    ("format", {"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2023-02-29"', '"2024-13-01"']),
    (
        "leap",
        {"type": "string", "format": "date"},
        ['"2000-02-29"', '"0004-02-29"'],
        ['"1900-02-29"', '"0000-01-01"'],
    ),
    ("format unknown", {"type": "string", "format": "chess-move"}, ['"Nf3"'], []),
    ("minimum", {"type": "integer", "minimum": -5, "maximum": 12}, ["-5", "0", "12"], ["-6", "13", "-0"]),
    (
        "minimum of a number",
        {"type": "number", "minimum": 0.1, "maximum": 1},
        ["0.1", "1.0", "1"],
        ["0.09", "1.01"],
    ),
    (
        "exclusiveMinimum",
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        ["0.5"],
        ["0", "0.0", "1"],
    ),
    ("both minima", {"type": "integer", "minimum": 3, "exclusiveMinimum": 3}, ["4"], ["3"]),
    ("fractional bound", {"type": "integer", "minimum": 2.5, "maximum": 4.5}, ["3", "4"], ["2", "5"]),
    ("multipleOf", {"type": "integer", "multipleOf": 12}, ["0", "24", "-36"], ["6", "-0"]),
    ("multipleOf of a number", {"type": "number", "multipleOf": 0.5}, ["3"], ["0.3"]),
    ("multipleOf twice", {"type": "integer", "allOf": [{"multipleOf": 4}, {"multipleOf": 6}]}, ["12"], ["4", "6"]),
    (
        "properties",
        OBJECT | AB,
        ["{}", '{"a": 1}', '{"b": 1}', '{"a": 1, "b": 2}'],
        ['{"b": 1, "a": 2, "b": 1}', '{"c": 1}'],
    ),
    ("required", OBJECT | AB | {"required": ["b"]}, ['{"b": 1}', '{"a":1,"b":1}'], ["{}", '{"a": 1}']),
    (
        "false property",
        OBJECT | {"properties": {"a": False, "b": {"type": "null"}}},
        ['{"b": null}'],
        ['{"a": 1}'],
    ),
    ("required unlisted", {"type": "object", "required": ["x"]}, ['{"x": [1]}'], ["{}", '{"y": 1}']),
    (
        "required by additionalProperties",
        {"type": "object", "required": ["x"], "additionalProperties": {"type": "null"}},
        ['{"x": null}'],
        ['{"x": 1}'],
    ),
    (
        "additionalProperties",
        {"type": "object", "additionalProperties": {"type": "null"}},
        ["{}", '{"é": null, "b": null}'],
        ['{"a": 1}'],
    ),
    ("no properties", {"type": "object", "additionalProperties": False}, ["{}"], ['{"a": 1}']),
    (
        "patternProperties",
        {"type": "object", "patternProperties": {"^x": {"type": "null"}}, "additionalProperties": False},
        ['{"x1": null}'],
        ['{"y": null}', '{"x": 1}'],
    ),
    (
        "patternProperties of a listed name",
        {"type": "object", "properties": {"x": {"minimum": 1}}, "patternProperties": {"x": {"type": "integer"}}},
        ['{"x": 3}'],
        ['{"x": 0}', '{"x": "a"}'],
    ),
    ("propertyNames", {"type": "object", "propertyNames": {"enum": ["a", "b"]}}, ['{"a": 1}'], ['{"c": 1}']),
    (
        "propertyNames listed",
        OBJECT | AB | {"propertyNames": {"maxLength": 1, "pattern": "a"}},
        ['{"a": 1}'],
        ['{"b": 1}'],
    ),
    ("minProperties", OBJECT | AB | {"minProperties": 1}, ['{"b": 1}', '{"a": 1, "b": 1}'], ["{}"]),
    ("maxProperties", OBJECT | AB | {"maxProperties": 1}, ["{}", '{"b": 1}'], ['{"a": 1, "b": 1}']),
    ("dependentRequired", OBJECT | AB | {"dependentRequired": {"a": ["b"]}}, ["{}", '{"b": 1}'], ['{"a": 1}']),
    (
        "dependentSchemas",
        OBJECT | AB | {"dependentSchemas": {"a": {"properties": {"b": {"minimum": 5}}, "required": ["b"]}}},
        ['{"b": 1}', '{"a": 1, "b": 5}'],
        ['{"a": 1, "b": 1}', '{"a": 1}'],
    ),
    (
        "dependentRequired and dependentSchemas of one name",
        OBJECT | AB | {"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": {"maxProperties": 2}}},
        ['{"b": 1}', '{"a": 1, "b": 5}'],
        ['{"a": 1}'],
    ),
    (
        "prefixItems before 2020-12",
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "array",
            "prefixItems": [{"type": "integer"}],
            "items": {"type": "null"},
            "minItems": 1,
        },
        ["[null]"],
        ["[1]"],
    ),
    (
        "beside $ref up to draft 7",
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"any": {"type": "integer"}},
            "$ref": "#/definitions/any",
            "minimum": 5,
        },
        ["1"],
        ["null"],
    ),
    (
        "a union of many",
        {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"kind": {"const": f"k{n}"}, "v": {"type": "integer"}},
                    "required": ["kind"],
                }
                for n in range(30)
            ]
        },
        ['{"kind": "k7", "v": 1}'],
        ['{"kind": "k30"}'],
    ),
    (
        "items",
        {"type": "array", "items": {"type": "integer"}},
        ["[]", "[1, 2]", "[1,2]"],
        ["[1.5]", "[1,]", "[,1]"],
    ),
    (
        "minItems",
        {"type": "array", "items": {"const": 0}, "minItems": 1, "maxItems": 2},
        ["[0]", "[0, 0]"],
        ["[]", "[0, 0, 0]"],
    ),
    (
        "prefixItems",
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}, "minItems": 1},
        ["[1]", "[1, 2]", "[1, 2, 3, 3]"],
        ["[]", "[2]", "[1, 3]"],
    ),
    (
        "prefix cut",
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "maxItems": 1},
        ["[]", "[1]"],
        ["[1, 2]"],
    ),
    ("impossible item", {"type": "array", "items": False}, ["[]"], ["[1]"]),
    ("impossible second", {"type": "array", "prefixItems": [{"const": 1}, False]}, ["[]", "[1]"], ["[1, 2]"]),
    (
        "contains",
        {"type": "array", "items": {"type": "integer"}, "contains": {"const": 7}},
        ["[7]", "[7, 1]"],
        ["[]", "[1]"],
    ),
    (
        "minContains",
        {"type": "array", "items": {"type": "null"}, "contains": True, "minContains": 2},
        ["[null,null]"],
        ["[null]"],
    ),
    (
        "uniqueItems",
        {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True},
        ["[1, 3]", "[]"],
        ["[1, 1]"],
    ),
    (
        "unique strings",
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        ['["a", "b"]'],
        ['["a", "a"]'],
    ),
    (
        "unique integers",
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        ["[1, 20, 3]"],
        ["[1, 1]"],
    ),
    (
        "unique booleans",
        {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True},
        ["[false, true]"],
        ["[true, true]"],
    ),
    (
        "unique objects",
        {"type": "array", "items": {"type": "object"}, "uniqueItems": True},
        ["[{}]"],
        ["[{}, {}]"],
    ),
    (
        "unique equal values",
        {"type": "array", "items": {"enum": [1, 1.0]}, "uniqueItems": True},
        ["[1]"],
        ["[1, 1.0]"],
    ),
    ("anyOf", {"anyOf": [{"type": "null"}, {"const": 5}]}, ["null", "5"], ["6"]),
    ("anyOf beside", {"type": "integer", "anyOf": [{"minimum": 8}, {"maximum": 2}]}, ["8", "2"], ["5"]),
    ("oneOf", {"oneOf": [{"type": "null"}, {"type": "integer"}]}, ["null", "5"], ["true"]),
    ("oneOf ranges", {"type": "integer", "oneOf": [{"minimum": 8}, {"maximum": 2}]}, ["8", "2"], ["5"]),
    (
        "oneOf lengths",
        {"type": "string", "oneOf": [{"maxLength": 1}, {"minLength": 3}]},
        ['"a"', '"abc"'],
        ['"ab"'],
    ),
    (
        "oneOf required",
        OBJECT | AB | {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        ['{"a": 1}', '{"b": 1}'],
        ["{}", '{"a": 1, "b": 1}'],
    ),
    (
        "oneOf with an optional tag",
        {"oneOf": [OBJECT | {"properties": {"t": {"const": 1}}}, OBJECT | {"properties": {"t": {"const": 2}}}]},
        ['{"t": 1}', '{"t": 2}'],
        ["{}", '{"t": 3}'],
    ),
    (
        "allOf",
        {"allOf": [OBJECT | AB, {"properties": {"a": {"minimum": 5}}, "required": ["a"]}]},
        ['{"a": 5}'],
        ['{"a": 4}', "{}"],
    ),
    (
        "allOf with additionalProperties",
        {"allOf": [OBJECT | AB, {"properties": {"a": True}, "additionalProperties": False}]},
        ['{"a": 1}', "{}"],
        ['{"b": 1}'],
    ),
    (
        "unevaluatedProperties",
        {"allOf": [OBJECT | AB], "unevaluatedProperties": False, "required": ["a"]},
        ['{"a": 1, "b": 1}'],
        ['{"a": 1, "c": 1}'],
    ),
    (
        "unevaluatedProperties of a cousin",
        {"allOf": [OBJECT | AB, {"properties": {"a": True}, "unevaluatedProperties": False}]},
        ['{"a": 1}'],
        ['{"b": 1}'],
    ),
    (
        "unevaluatedItems",
        {"type": "array", "prefixItems": [{"const": 1}], "unevaluatedItems": False},
        ["[1]", "[]"],
        ["[1, 2]"],
    ),
    ("not", {"not": {"type": ["object", "array", "string"]}}, ["1", "null"], ['"a"', "[]", "{}"]),
    ("$ref beside", {"$ref": "#/$defs/a", "minimum": 3, "$defs": {"a": {"type": "integer"}}}, ["3"], ["2", "3.5"]),
    (
        "$ref to the root",
        {"type": "array", "items": {"$ref": "#"}},
        ["[]", "[[], []]", "[[[[[]]]]]"],
        ["[[[[[[[]]]]]]]", "[1]"],
    ),
    (
        "$ref from two sides",
        {
            "$defs": {
                "a": {"type": "integer"},
                "b": {"$ref": "#/$defs/a"},
                "c": {"$ref": "#/$defs/a", "minimum": 0},
            },
            "allOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/c"}, {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}],
        },
        ["0", "5"],
        ["-1"],
    ),
    (
        "annotations",
        {"type": "null", "title": 1 and "t", "default": 5, "examples": [1], "x-y": {}},
        ["null"],
        ["5"],
    ),
]


@pytest.mark.parametrize(
    ("schema", "inside", "outside"), [case[1:] for case in KEYWORDS], ids=[c[0] for c in KEYWORDS]
)
def test_keywords(schema: Any, inside: list[str], outside: list[str]) -> None:
    dfa = check_walks(schema, 20)
    assert [text for text in inside if not dfa.accepts(text.encode())] == []
    assert [text for text in outside if dfa.accepts(text.encode())] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "exclusiveMinimum": 0.30000000000000004},
        {"type": "number", "exclusiveMaximum": 0.1, "minimum": -0.1},
        {"type": "number", "minimum": 1e-9, "maximum": 2e-9},
        {"type": "number", "exclusiveMinimum": 123456789.12345678},
        {"type": "number", "maximum": -1e14},
        {"type": "integer", "minimum": 10**20, "maximum": 10**20 + 7},
        {"type": "number", "multipleOf": 0.01},
        {"type": "array", "uniqueItems": True, "items": {"type": "string", "format": "date"}},
        {"type": "array", "uniqueItems": True, "items": {"type": "integer", "minimum": -30}, "minItems": 2},
        {"type": "array", "uniqueItems": True, "items": {"type": "string", "maxLength": 2}, "maxItems": 3},
    ],
)
def test_bounds_and_differences_hold_after_parsing(schema: Any) -> None:
    check_walks(schema, 50, soft_length=20)


@functools.cache
def deep(levels: int) -> dict[str, Any]:
    return {"type": "array", "items": deep(levels - 1)} if levels else {"type": "null"}


def comb(levels: int) -> dict[str, Any]:
    """Each level refers to the next one twice."""
    definitions: dict[str, Any] = {
        str(level): {"type": "array", "prefixItems": [{"$ref": f"#/$defs/{level + 1}"}] * 2, "minItems": 2}
        for level in range(levels)
    }
    return {"$ref": "#/$defs/0", "$defs": definitions | {str(levels): {"type": "null"}}}


@pytest.mark.parametrize(
    ("schema", "cause"),
    [
        ({"type": "array", "not": {"uniqueItems": True}}, "keyword uniqueItems "),
        (
            {"type": "object", "not": {"patternProperties": {"a": False}}, "minProperties": 2},
            "keyword patternProperties ",
        ),
        ({"type": "integer", "not": {"multipleOf": 0.3}}, "keyword multipleOf "),
        ({"$dynamicRef": "#x"}, r"\$dynamicRef"),
        ({"$ref": "https://example.com/schema.json"}, r"\$ref 'https://example.com"),
        ({"items": {"$id": "http://a.b/c", "$ref": "#"}, "type": "array"}, "recursion has no end"),
        ({"$ref": "#/$defs/absent"}, "leads nowhere"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "recursion has no end"),
        # No validator comes to an end with this one, though its other branch would.
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "recursion has no end: the \\$ref '#' at \\$ leads back"),
        ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "keyword oneOf "),
        ({"oneOf": [{"type": "string"}, {"type": "string", "format": "date"}]}, "keyword oneOf "),
        ({"type": "array", "contains": {"uniqueItems": True}, "maxContains": 2}, "keyword maxContains "),
        (
            {"type": "array", "items": {"type": "object"}, "uniqueItems": True, "minItems": 2},
            "keyword uniqueItems ",
        ),
        (
            {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 30},
            "keyword uniqueItems .*30 of its items",
        ),
        ({"type": "array", "contains": {}, "minContains": 100}, "keyword minContains "),
        ({"type": "array", "contains": {"type": "null"}, "minItems": 100}, "keyword minItems "),
        ({"type": "number", "multipleOf": 1e-20}, "keyword multipleOf "),
        ({"type": "number", "multipleOf": 12345.678}, "keyword multipleOf "),
        ({"type": "integer", "multipleOf": 12345}, "keyword multipleOf "),
        ({"type": "integer", "minimum": 10**301}, "keyword minimum "),
        ({"type": "string", "pattern": r"(a)\1"}, r"keyword pattern at \$ .*back-reference"),
        ({"type": "string", "pattern": "a{0,5000}"}, "keyword pattern .*5000"),
        ({"type": "string", "minLength": 15_000}, "minLength of 15,000"),
        ({"type": "string", "minLength": 10**9}, "keyword minLength "),
        ({"type": "array", "items": {"type": "string"}, "minItems": 70_000}, "keyword minItems "),
        ({"type": "array", "items": {"type": "string"}, "minItems": 9000}, "minItems of 9,000"),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "number", "minimum": 5, "maximum": 4}},
                "required": ["a"],
            },
            r"\$\.a",
        ),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "contradict"),
        ({"type": "string", "pattern": "a$b"}, "contradict"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "contradict"),
        ({"enum": ["a"], "type": "integer"}, "contradict"),
        (False, "contradict"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "recursion has no end"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "recursion has no end"),
        ({"type": "text"}, r'invalid at \$\.type: "text" is no type'),
        ({"type": "object", "properties": {"a": {"minimum": "1"}}}, r"invalid at \$\.properties\.a\.minimum"),
        ({"type": "string", "pattern": "("}, "invalid"),
        ({"required": "name"}, "invalid"),
        ([], "JSON object"),
        ("string", "JSON object"),
        ({"enum": [float("nan")]}, "not JSON"),
        ({"default": {1, 2}}, "not JSON"),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "draft 3"),
        ({"description": "x" * 1_000_000}, "1,000,0.* characters"),
        ({"enum": [f"{number**20:065}"[:65] for number in range(1, 2000)]}, "65,536 states"),
        ({"type": "array", "uniqueItems": True, "items": {"enum": list(range(28_000))}}, "28,000 values"),
        ({"$defs": {str(number): {} for number in range(11_000)}}, "10,000 objects"),
        ({"enum": ["a" * 40 + "!", "b"], "pattern": "^(a+)+$"}, "contradict"),
        ({"enum": [1, 2], "not": {"$ref": "#"}}, "recursion has no end"),
        # Here `referencing` panicked, in Rust.
        (
            {"type": "object", "properties": {"a": {"enum": [1], "if": {"$ref": "#/properties/a"}}}},
            "recursion has no end",
        ),
        (
            {"type": "object", "properties": {f"property {n}": {"type": "string"} for n in range(3000)}},
            "5,000 places",
        ),
        (deep(200), "nested too deeply"),
        (deep(30) | {"minItems": 1}, None),
        (comb(20), "65,536 states"),
        (dict(jsonschema.Draft202012Validator.META_SCHEMA), r"\$"),
    ],
)
def test_what_cannot_be_done_is_said_soon(schema: Any, cause: str | None) -> None:
    start = time.process_time()
    if cause is None:
        schema_language(schema)
    else:
        with pytest.raises(ConstraintError, match=cause) as caught:
            schema_language(schema)
        assert len(str(caught.value)) < 500
    assert time.process_time() - start < 2


def test_the_schema_of_schemas() -> None:
    """Forty properties, most of them recursive: only a recursion depth of 1 fits."""
    check_walks(dict(jsonschema.Draft7Validator.META_SCHEMA), 25)


def test_what_is_tried_besides_may_nest_too_deeply() -> None:
    """Any order takes more of the stack than that of the schema's text, which is kept then."""
    properties = {name: {"type": "integer"} for name in "abc"}

    def is_refused(levels: int) -> bool:
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        for _ in range(levels):
            schema = {"type": "array", "items": schema}
        try:
            compile_schema(schema)
        except ConstraintError:
            return True
        return False

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 350)  # so that it is soon reached
    try:
        assert 0 < bisect.bisect(range(100), False, key=is_refused) < 100
    finally:
        sys.setrecursionlimit(limit)


def test_a_maximum_is_lowered_until_the_automaton_fits() -> None:
    """What is given is what can be written, and no more."""
    texts = {"type": "object", "properties": {name: {"type": "string", "maxLength": 4000} for name in "abcdef"}}
    one = schema_language({"type": "string", "maxLength": 4000})
    assert one.accepts(text_of("é" * 1024))
    assert not one.accepts(text_of("é" * 1025))
    compiled = compile_schema(texts)
    (lowered,) = compiled.lowered
    assert lowered.given >= 500
    for length, right in ((lowered.given, True), (lowered.given + 1, False)):
        assert compiled.dfa.accepts(text_of({"a": "x", "f": "😀" * length})) == right


def test_the_same_text_in_many_places_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has to be of two languages that are too many ways to be taken one by one."""
    made = []
    product = compiler.intersection
    monkeypatch.setattr(compiler, "intersection", lambda *both: made.append(both) or product(*both))

    def either(pattern: str) -> dict[str, Any]:
        return {"anyOf": [{"pattern": pattern}, *({"type": "integer", "minimum": each} for each in range(2))]}

    def text() -> dict[str, Any]:
        return {"type": "string", "allOf": [either("^(a{11})*x$"), either("^[a-x]*$")]}

    counts = set()
    for places in (1, 6):
        made.clear()
        dfa = schema_language({"type": "object", "properties": {f"p{each}": text() for each in range(places)}})
        assert dfa.accepts(b'{"p0": "aaaaaaaaaaax"}')
        counts.add(len(made))
    (count,) = counts
    assert count > 0


def test_what_people_notice_is_kept_whole() -> None:
    """Ten posts of 280 characters were six of 32; fourteen fields of 50 were refused."""
    thread = {"type": "array", "maxItems": 10, "items": {"type": "string", "maxLength": 280}}
    fields = {"type": "object", "properties": {f"f{n}": {"type": "string", "maxLength": 50} for n in range(14)}}
    nodes = {"type": "array", "items": {"$ref": "#"}}
    tree = {"type": "object", "properties": {"n": {"type": "string"}, "of": nodes}}
    branch: dict[str, Any] = {"n": "leaf"}
    for _ in range(4):
        branch = {"n": "branch", "of": [branch, {"n": "leaf"}]}
    for schema, document in (
        (thread, ["x" * 280] * 10),
        (fields, {f"f{n}": "x" * 50 for n in range(14)}),
        (tree, branch),
    ):
        compiled = compile_schema(schema)
        assert not any(each.by_size for each in compiled.lowered)
        assert compiled.dfa.accepts(text_of(document))


LONG = {"type": "string", "maxLength": 9000}


@pytest.mark.parametrize(
    ("schema", "lowered"),
    [
        (LONG, [("maxLength", 9000, 1024, "$")]),
        ({"type": "array", "maxItems": 1000, "items": {"type": "null"}}, [("maxItems", 1000, 512, "$")]),
        (
            {"type": "object", "maxProperties": 150, "additionalProperties": {"type": "null"}},
            [],
        ),
        ({"type": "string", "minLength": 1030, "maxLength": 9000}, [("maxLength", 9000, 1030, "$")]),
        # Both places, each with its own bound.
        (
            {"type": "object", "properties": {"a": LONG, "b": {"type": "string", "maxLength": 3000}, "c": LONG}},
            [("maxLength", 9000, 1024, "$.a"), ("maxLength", 3000, 1024, "$.b")],
        ),
        # The longest of the texts, and how many there are: recursion takes nothing that they could use.
        (
            {
                "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
                "type": "object",
                "properties": {
                    "a": {"$ref": "#/$defs/node"},
                    **{f"b{n}": {"type": "string", "maxLength": 130} for n in range(20)},
                },
            },
            [("recursion", None, 3, "$.a[][][]")],
        ),
        # So many values in any order, and those that follow as the schema has them.
        (
            {"type": "array", "items": {"enum": list("abcdefghij")}, "uniqueItems": True},
            [("uniqueItems", 10, 5, "$")],
        ),
        ({"type": "array", "maxItems": 3, "items": {"enum": list("abcdefghij")}, "uniqueItems": True}, []),
        (
            {"type": "array", "items": {"type": "string", "maxLength": 100}, "uniqueItems": True},
            [("maxLength", 100, 64, "$[]"), ("uniqueItems", 4, 2, "$")],
        ),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, []),
        # No two objects can be kept different, so there is one. And what has no end is given one.
        (
            {"type": "array", "items": {"type": "object"}, "uniqueItems": True},
            [("uniqueItems", 4, 1, "$"), ("nesting", None, 4, "$[].*[][][]")],
        ),
        (
            {"type": "array", "items": {"type": "object"}, "uniqueItems": True, "maxItems": 1},
            [("nesting", None, 4, "$[].*[][][]")],
        ),
        # Nothing that can be written is lost.
        ({"type": "string", "maxLength": 1000}, []),
        ({"type": "string"}, []),
        ({"type": "string", "maxLength": 3000, "pattern": "^[a-z]{3,40}$"}, []),
        ({"type": "string", "maxLength": 3000, "pattern": "^[a-z]{3,}$"}, [("maxLength", 3000, 1024, "$")]),
        ({"type": "string", "maxLength": 300, "format": "date"}, []),
        ({"enum": ["a"], "maxLength": 300}, []),
        ({"type": "array", "maxItems": 100, "items": {"enum": [1, 2, 3]}, "uniqueItems": True}, []),
        ({"type": "array", "maxItems": 100, "prefixItems": [LONG | {"maxLength": 9}], "items": False}, []),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "maxProperties": 100}, []),
        ({"type": "array", "items": {"$ref": "#"}}, [("recursion", None, 5, "$[][][][][]")]),
        ({}, [("nesting", None, 4, "$[][][][]")]),
    ],
)
def test_what_was_lowered_is_told(schema: Any, lowered: list[tuple[str, int | None, int, str]]) -> None:
    assert list(compile_schema(schema).lowered) == [Lowered(*each) for each in lowered]


def test_names_of_hosts_are_lowered_last() -> None:
    many = {
        "type": "object",
        "properties": {f"p{number}": {"format": "hostname", "type": "string"} for number in range(100)},
    }
    (lowered,) = compile_schema(many).lowered
    assert (lowered.keyword, lowered.asked, lowered.at) == ("format hostname", 253, "$.p0")
    assert lowered.given < 253


def test_a_shared_definition_recurses_as_deep_wherever_it_is_led_to() -> None:
    node = {"type": "object", "properties": {"v": {"type": "null"}, "next": {"$ref": "#/$defs/node"}}}
    other = {"type": "object", "properties": {"n": {"$ref": "#/$defs/node"}}}
    schema = {"$defs": {"node": node}, "type": "object", "properties": {"a": {"$ref": "#/$defs/node"}, "b": other}}
    dfa = schema_language(schema)
    chain: dict[str, Any] = {"v": None}
    for depth in range(1, LIMITS[0].depth + 3):
        for document in ({"a": chain}, {"b": {"n": chain}}):
            assert dfa.accepts(text_of(document)) == (depth <= LIMITS[0].depth), document
        chain = {"next": chain}
