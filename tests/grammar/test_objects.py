"""Objects: which properties are written, where, with which values, and how many of them.

`WRITTEN` is a table of schemas with documents that can be written and some that can't, which may be valid all the
same where the compiler narrows. The brute force below it tries all small documents.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llm_diffusiongemma.grammar.samples import random_texts
from llm_diffusiongemma.grammar.schema import compile_schema
from tests.attacks.schemas import stock_judge

DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"
INTEGER, STRING, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}


def record(**keywords: Any) -> dict[str, Any]:
    """An object that lists an integer `a` and an optional string `b`."""
    return {"type": "object", "properties": {"a": INTEGER, "b": STRING}, "required": ["a"], **keywords}


def free(**keywords: Any) -> dict[str, Any]:
    """An object that lists no properties, of integers."""
    return {"type": "object", "additionalProperties": INTEGER, **keywords}


# name: schema, what can be written, what can't
WRITTEN: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "only the listed ones where nothing is said of others": (
        record(),
        ['{"a": 1}', '{"a": 1, "b": ""}', '{"b": "", "a": 1}'],
        ['{"a": 1, "c": 1}', '{"b": ""}', '{"b": "", "a": 1, "b": ""}'],
    ),
    "its schema in front, where that names its own": (
        record(**{"$schema": DRAFT_2020}),
        ['{"a": 1}', '{"$schema": "x", "a": 1}', '{"$schema": "x", "b": "", "a": 1}'],
        ['{"$schema": 1, "a": 1}', '{"$schema": "x"}', '{"a": 1, "$schema": "x"}'],
    ),
    "its schema, where nothing is required": (
        record(**{"$schema": DRAFT_2020, "required": []}),
        ["{}", '{"$schema": "x"}', '{"$schema": "x", "b": ""}'],
        ['{"$schema": "x", "$schema": "y"}'],
    ),
    "its schema, where it is spoken of or others are": (
        record(**{"$schema": DRAFT_2020, "dependentRequired": {"$schema": ["b"]}, "propertyNames": True}),
        ['{"a": 1}'],
        ['{"$schema": "x", "a": 1}', '{"$schema": "x", "a": 1, "b": ""}'],
    ),
    "its schema, inside": (
        {"$schema": DRAFT_2020, "type": "object", "properties": {"r": record()}},
        ['{"$schema": "x", "r": {"a": 1}}'],
        ['{"r": {"$schema": "x", "a": 1}}'],
    ),
    "others of a schema, anywhere": (
        record(additionalProperties=NULL),
        ['{"a": 1}', '{"x": null, "a": 1, "ab": null, "b": "", "A": null, "é": null, "": null}'],
        ['{"a": 1, "c": 1}', '{"c": null}', '{"a": 1, "b": null}', '{"b": null, "a": 1}', '{"a": null, "a": 1}'],
    ),
    "others of any kind": (
        record(additionalProperties=True),
        ['{"$schema": "x", "a": 1}', '{"a": 1, "b": "", "c": [{"d": 1}]}'],
        ['{"a": 1, "b": 2}', '{"a": 1, "\\u0062": 2}'],
    ),
    "none beside maxProperties of the listed": (
        record(additionalProperties=NULL, maxProperties=1),
        ['{"a": 1}'],
        ['{"a": 1, "b": ""}', '{"a": 1, "c": null}'],
    ),
    "others are counted": (
        record(additionalProperties=NULL, maxProperties=2),
        ['{"a": 1, "c": null}', '{"a": 1, "b": ""}'],
        ['{"a": 1, "b": "", "c": null}'],
    ),
    "others that match a pattern, and no more": (
        record(patternProperties={"^x-": NULL}),
        ['{"a": 1, "x-y": null}', '{"x-": null, "a": 1, "b": "", "x-z": null}'],
        ['{"a": 1, "x-y": 1}', '{"a": 1, "y": null}'],
    ),
    "several patterns, alone and both at once": (
        {"type": "object", "patternProperties": {"^x": {"minimum": 1}, "y$": INTEGER}},
        ['{"x": 1.5, "y": 0, "xy": 1}', '{"x": "", "ay": -1}'],
        ['{"x": 0}', '{"y": 1.5}', '{"xy": 0}', '{"xy": 1.5}', '{"z": 1}'],
    ),
    "several patterns and all that match none": (
        {
            "type": "object",
            "patternProperties": {"^x": NULL, "^y": STRING},
            "additionalProperties": INTEGER,
        },
        ['{"x": null, "y": "", "z": 1}'],
        ['{"x": 1}', '{"y": 1}', '{"z": ""}'],
    ),
    "a name with a control character may match a pattern": (
        free(propertyNames={"enum": ["\u0001", "a"]}, patternProperties={"^.$": NULL}),
        ['{"a": null}'],
        ['{"\\u0001": 1}', '{"a": 1}'],
    ),
    "a pattern that rules a listed name as well": (
        record(patternProperties={"^b": {"minLength": 1}}),
        ['{"a": 1, "b": "x"}', '{"a": 1, "bb": 7}'],
        ['{"a": 1, "b": ""}', '{"a": 1, "bb": ""}'],
    ),
    "an empty pattern is in every name": (
        {"type": "object", "patternProperties": {"": INTEGER}},
        ['{"": 1, "x": 2}'],
        ['{"x": ""}'],
    ),
    # The stock judge below is asked about ^, for jsonschema takes the empty one for none.
    "an empty pattern beside additionalProperties, for which it leaves nothing": (
        {"type": "object", "patternProperties": {"": {"minimum": 1}}, "additionalProperties": INTEGER},
        ['{"x": 2}', '{"x": 1.5}', '{"x": ""}'],
        ['{"x": 0}'],
    ),
    "propertyNames, which rule all": (
        record(propertyNames={"maxLength": 2, "pattern": "^[a-z]+$"}, additionalProperties=NULL),
        ['{"a": 1, "cd": null}'],
        ['{"a": 1, "cde": null}', '{"a": 1, "C": null}', '{"a": 1, "": null}'],
    ),
    "propertyNames that list": (
        {"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": INTEGER},
        ['{"x": 1}', '{"y": 1, "x": 2}'],
        ['{"z": 1}'],
    ),
    "propertyNames that forbid a listed one": (
        record(propertyNames={"not": {"const": "b"}}) | {"propertyNames": {"enum": ["a", "c"]}},
        ['{"a": 1}'],
        ['{"a": 1, "b": ""}'],
    ),
    "a property that must be there comes before the others": (
        free(required=["k"]),
        ['{"k": 1}', '{"k": 1, "l": 2}', '{"j": 0, "k": 1}'],
        ["{}", '{"l": 1}', '{"k": ""}', '{"k": 1, "k": ""}'],
    ),
    "an object of which only what must be there is said": (
        {"type": "object", "required": ["k"]},
        ['{"k": 1}', '{"k": [], "l": {}}'],
        ["{}", '{"l": 1}'],
    ),
    "two different names": (
        free(minProperties=2),
        ['{"a": 0, "c": 2}', '{"zebra": 1, "ant": 2}', '{"item2": 1, "item1": 2, "x": 3}'],
        ["{}", '{"a": 1}', '{"a": 1, "a": 2}', '{"a": 1, "b": ""}'],
    ),
    "three different names": (
        {"type": "object", "additionalProperties": NULL, "minProperties": 3},
        ['{"red": null, "green": null, "blue": null}'],
        ['{"a": null, "b": null}', '{"a": null, "b": null, "a": null}', '{"a": null, "b": null, "b": null}'],
    ),
    "from two to three": (
        free(minProperties=2, maxProperties=3),
        ['{"a": 0, "b": 2}', '{"a": 0, "b": 2, "c": 1}'],
        ['{"a": 0}', '{"a": 0, "b": 2, "c": 1, "d": 1}'],
    ),
    "more than are listed": (
        record(minProperties=3),
        ['{"a": 1, "b": "", "c": [1]}', '{"a": 1, "b": "", "c": 0, "d": null}'],
        ['{"a": 1, "b": ""}', '{"a": 1, "c": 1, "d": 1}', '{"a": 1, "b": "", "b": ""}'],
    ),
    "many more than are listed": (
        record(minProperties=4, additionalProperties=NULL),
        ['{"a": 1, "b": "", "c": null, "d": null}'],
        ['{"a": 1, "b": "", "c": null}', '{"a": 1, "b": "", "c": null, "c": null}'],
    ),
    "others that may repeat are one of those demanded": (
        {
            "type": "object",
            "properties": dict.fromkeys("abc", INTEGER),
            "minProperties": 2,
            "additionalProperties": NULL,
        },
        ['{"a": 1, "b": 2}', '{"b": 1, "c": 1, "x": null}'],
        ['{"a": 1}', '{"x": null, "x": null}', '{"x": null}'],
    ),
    "without the one that asks for another anything is allowed": (
        {"type": "object", "additionalProperties": STRING, "dependentRequired": {"card": ["addr"]}},
        ['{"foo": "1"}', '{"addr": ""}', "{}", '{"card": "", "addr": "", "foo": ""}'],
        ['{"card": "1"}', '{"card": "1", "foo": ""}'],
    ),
    "the same where nothing else is said": (
        {"type": "object", "dependentRequired": {"card": ["addr"]}},
        ['{"foo": 1}', '{"card": 1, "addr": 2, "foo": []}'],
        ['{"card": 1}'],
    ),
    "dependentSchemas on a free object": (
        free(dependentSchemas={"x": {"properties": {"y": {"minimum": 1}}, "minProperties": 2}}),
        ['{"y": 0}', '{"y": 1, "x": 1}'],
        ['{"x": 1}', '{"x": 1, "y": 0}'],
    ),
    "a name that is forbidden": (
        {"type": "object", "properties": {"no": False}},
        ['{"yes": 1}', "{}"],
        ['{"no": 1}', '{"yes": 1, "no": 2}'],
    ),
    "what a pattern evaluates is not unevaluated": (
        {"type": "object", "patternProperties": {"^x_": STRING}, "unevaluatedProperties": False},
        ['{"x_a": "b"}', "{}"],
        ['{"y": "b"}', '{"x_a": 1}'],
    ),
    "what additionalProperties evaluate neither": (
        {"allOf": [free()], "type": "object", "unevaluatedProperties": False},
        ['{"x": 1}'],
        ['{"x": ""}'],
    ),
    "unevaluatedProperties of a schema": (
        {"type": "object", "allOf": [record()], "unevaluatedProperties": NULL},
        ['{"a": 1, "c": null}', '{"a": 1, "b": ""}'],
        ['{"a": 1, "c": 1}', '{"a": 1, "b": null}'],
    ),
    "inheritance, closed": (
        {
            "$defs": {
                "base": record(),
                "middle": {"allOf": [{"$ref": "#/$defs/base"}], "properties": {"c": NULL}},
            },
            "type": "object",
            "allOf": [{"$ref": "#/$defs/middle"}],
            "properties": {"d": NULL},
            "patternProperties": {"^x-": NULL},
            "unevaluatedProperties": False,
        },
        ['{"a": 1, "b": "", "c": null, "d": null, "x-y": null}', '{"a": 1, "d": null}'],
        ['{"a": 1, "e": null}', '{"d": null}'],
    ),
    "inheritance by a choice, closed": (
        {
            "type": "object",
            "anyOf": [record(), {"properties": {"a": STRING}, "patternProperties": {"^x": NULL}}],
            "unevaluatedProperties": False,
        },
        ['{"a": 1, "b": ""}', '{"a": "", "xx": null}', '{"xx": null}'],
        ['{"a": 1, "xx": null}', '{"a": "", "b": ""}', '{"b": ""}'],
    ),
    "the base first where its allOf stands before the properties": (
        {
            "$defs": {"base": {"properties": {"id": INTEGER}, "required": ["id"]}},
            "type": "object",
            "allOf": [{"$ref": "#/$defs/base"}],
            "properties": {"name": STRING, "anything": True},
            "required": ["name"],
        },
        ['{"id": 1, "name": "x"}', '{"id": 1, "name": "x", "anything": [2]}'],
        ['{"name": "x"}', '{"name": "x", "id": 1}'],
    ),
    "the base last where it stands behind them": (
        {
            "$defs": {"base": {"properties": {"id": INTEGER}, "required": ["id"]}},
            "type": "object",
            "properties": {"name": STRING, "anything": True},
            "required": ["name"],
            "$ref": "#/$defs/base",
        },
        ['{"name": "x", "id": 1}'],
        ['{"name": "x"}', '{"id": 1, "name": "x"}'],
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written(name: str) -> None:
    schema, written, unwritten = WRITTEN[name]
    compiled = compile_schema(schema)
    stock = stock_judge({"$schema": DRAFT_2020, **schema})
    for text in written:
        assert stock.is_valid(json.loads(text)), text
        assert compiled.dfa.accepts(text.encode()), text
        assert compiled.dfa.accepts(json.dumps(json.loads(text), ensure_ascii=False, indent=2).encode()), text
    for text in unwritten:
        assert not compiled.dfa.accepts(text.encode()), text
    for text in random_texts(compiled.dfa, 10, soft_length=40):
        document = json.loads(text)
        assert stock.is_valid(document), text
        assert compiled.validator.is_valid(document), text


NAMES = ("a", "ab", "b", "x_1")
VALUES = ("1", "0", '""', "null")
TEXTS = [
    (names, "{" + ", ".join(f'"{name}": {value}' for name, value in zip(names, values, strict=True)) + "}")
    for count in range(4)
    for names in itertools.product(NAMES, repeat=count)
    for values in itertools.product(VALUES[: 4 if count < 3 else 2], repeat=count)
]


def turned(names: Sequence[str]) -> bool:
    """Whether `b` stands before `a`."""
    return {"a", "b"} <= set(names) and names.index("b") < names.index("a")


def mixed(names: Sequence[str]) -> bool:
    """Whether others stand before `a`, and `b` as well."""
    return turned(names) and names.index("a") > 1


SCALAR: dict[str, Any] = {"type": "object", "additionalProperties": {"type": ["null", "integer", "string"]}}

# Schemas, and of which valid documents without a repeated name none is written, by their names (None: of some).
SMALL: list[tuple[dict[str, Any], Callable[[Sequence[str]], bool | None] | None]] = [
    (free(), None),
    (free(maxProperties=2), None),
    (free(minProperties=2), None),
    (free(required=["ab"]), None),
    (
        {"type": "object", "patternProperties": {"a": INTEGER, "b": {"minimum": 1}}},
        lambda names: "x_1" in names,
    ),
    ({"type": "object", "patternProperties": {"a": INTEGER, "^.$": STRING}, "additionalProperties": NULL}, None),
    (record(additionalProperties=NULL), mixed),
    (record(patternProperties={"x": INTEGER}, additionalProperties={"type": ["null", "integer"]}), mixed),
    (
        record(additionalProperties=NULL, maxProperties=2),
        lambda names: turned(names) or (len(names) > 1 and names[-1] == "a"),
    ),
    (
        record(additionalProperties=NULL, minProperties=2),
        lambda names: turned(names) or (len(names) > 1 and names[0] == "a" and "b" not in names),
    ),
    (record(additionalProperties=NULL, minProperties=3), lambda names: names[:2] != ("a", "b")),
    (record(propertyNames={"maxLength": 2}, additionalProperties=True), mixed),
    (
        free(dependentRequired={"ab": ["b"]}),
        lambda names: "ab" in names and names.index("b") < names.index("ab") and names.index("ab") > 1,
    ),
    ({"type": "object", "allOf": [record()], "unevaluatedProperties": NULL}, mixed),
    # Behind one that breaks what is negated, others by the same pattern have to break it as well.
    (
        SCALAR | {"not": {"patternProperties": {"a": INTEGER}}},
        lambda names: "a" in names and "ab" in names and None,
    ),
    (SCALAR | {"not": {"propertyNames": {"pattern": "^a"}}}, None),
    (SCALAR | {"not": {"additionalProperties": False, "patternProperties": {"^.$": True}}}, None),
    (SCALAR | {"not": {"patternProperties": {"a": INTEGER}}, "maxProperties": 1}, None),
    # What counts comes first where there is a maximum.
    (
        SCALAR | {"not": {"patternProperties": {"a": False}}, "maxProperties": 2},
        lambda names: len(names) == 2 and "a" not in names[0],
    ),
]


@pytest.mark.parametrize("number", range(len(SMALL)))
def test_all_small_documents(number: int) -> None:
    """None that is invalid is written; and all that are valid, but for those that are narrowed."""
    schema, narrowed = SMALL[number]
    dfa = compile_schema(schema).dfa
    stock = stock_judge({"$schema": DRAFT_2020, **schema})
    for names, text in TEXTS:
        valid = stock.is_valid(json.loads(text))
        written = dfa.accepts(text.encode())
        assert valid or not written, text
        if valid and len(set(names)) == len(names):
            expected = False if narrowed is None else narrowed(names)
            assert expected is None or written != expected, text
