"""By which draft a schema is read, and that no document of its language ever fails or breaks the final check."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from llm_diffusiongemma.backends.form import read_form
from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar.dialects import read_schema
from llm_diffusiongemma.grammar.samples import random_texts
from llm_diffusiongemma.grammar.schema import compile_schema, schema_language
from tests.attacks import schemas
from tests.grammar.wild import DRAFTS

DRAFT_4, DRAFT_6, DRAFT_7, DRAFT_2019, DRAFT_2020 = DRAFTS


def judge_of(schema: dict[str, Any]) -> Any:
    """jsonschema as it comes, which fetches nothing, but for multiples and empty patterns."""
    return schemas.stock_judge(schema)


def check_texts(schema: dict[str, Any], count: int, seed: int = 0) -> None:
    """Fails unless random documents of the language pass the final check, and jsonschema as it comes."""
    compiled = compile_schema(schema)
    stock = judge_of(schema)
    for text in random_texts(compiled.dfa, count, seed=seed, soft_length=40):
        document = json.loads(text)
        assert compiled.validator.is_valid(document), text
        try:
            accepted = stock.is_valid(document)
        except Exception:
            continue  # what it stumbles over it has not judged
        assert accepted, text


def test_documents_of_wild_schemas_are_valid() -> None:
    """A short run of `python -m tests.attacks schemas`."""
    assert [outcome for outcome in schemas.run(70, 1, 10, 6) if not outcome.held] == []


@pytest.mark.parametrize(
    ("spelling", "draft"),
    [
        ("http://json-schema.org/draft-04/schema#", DRAFT_4),
        ("http://json-schema.org/draft-04/schema", DRAFT_4),
        ("https://json-schema.org/draft-04/schema", DRAFT_4),
        ("http://json-schema.org/draft-06/schema#", DRAFT_6),
        ("https://json-schema.org/draft-06/schema/", DRAFT_6),
        ("https://json-schema.org/draft-07/schema#", DRAFT_7),
        ("https://json-schema.org/draft-07/schema", DRAFT_7),
        ("http://json-schema.org/draft-07/schema/#", DRAFT_7),
        ("HTTP://JSON-Schema.org/Draft-07/schema#", DRAFT_7),
        ("http://www.json-schema.org/draft-07/schema#", DRAFT_7),
        ("http://json-schema.org/draft-07/hyper-schema#", DRAFT_7),
        (" http://json-schema.org/draft-07/schema# ", DRAFT_7),
        ("http://json-schema.org/draft/2019-09/schema", DRAFT_2019),
        ("https://json-schema.org/draft/2019-09/schema#", DRAFT_2019),
        ("http://json-schema.org/draft/2020-12/schema#", DRAFT_2020),
        (None, DRAFT_2020),
    ],
)
def test_the_draft_of_a_spelling(spelling: str | None, draft: str) -> None:
    schema = {"type": "null"} if spelling is None else {"$schema": spelling, "type": "null"}
    assert read_schema(schema).META_SCHEMA == DRAFTS[draft].META_SCHEMA


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "draft-07",
        "http://json-schema.org/schema#",
        "http://json-schema.org/draft-05/schema#",
        "http://json-schema.org/draft-08/schema#",
        "https://json-schema.org/draft/2021-01/schema",
        "https://json-schema.org/draft/next/schema",
        "https://example.com/draft-07/schema#",
        "https://json-schema.org/draft-07/schema#/definitions/simpleTypes",
        "./meta.json",
    ],
)
def test_an_unknown_draft_is_refused(spelling: str) -> None:
    with pytest.raises(ConstraintError, match=r"The \$schema .* none that can be read"):
        schema_language({"$schema": spelling, "type": "null"})


BOTH = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}}
A, B, AB = '{"a": null}', '{"b": null}', '{"a": null, "b": null}'


@pytest.mark.parametrize(
    ("schema", "drafts", "inside", "outside"),
    [
        (BOTH | {"dependencies": {"a": ["b"]}}, (DRAFT_4, DRAFT_6, DRAFT_7), [B, AB], [A]),
        (BOTH | {"dependencies": {"a": ["b"]}}, (DRAFT_2019, DRAFT_2020), [A, B, AB], []),
        (BOTH | {"dependencies": {"a": {"maxProperties": 1}}}, (DRAFT_4, DRAFT_6, DRAFT_7), [A, B], [AB]),
        (BOTH | {"dependentRequired": {"a": ["b"]}}, (DRAFT_2019, DRAFT_2020), [B, AB], [A]),
        (BOTH | {"dependentRequired": {"a": ["b"]}}, (DRAFT_4, DRAFT_6, DRAFT_7), [A, B, AB], []),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, (DRAFT_4,), ["4"], ["3"]),
        ({"type": "integer", "exclusiveMinimum": 3}, (DRAFT_6, DRAFT_7, DRAFT_2019, DRAFT_2020), ["4"], ["3"]),
        (
            {"type": "array", "items": [{"const": 1}], "minItems": 1, "additionalItems": False},
            (DRAFT_6, DRAFT_7, DRAFT_2019),
            ["[1]"],
            ["[2]", "[1, 1]"],
        ),
        ({"type": "array", "prefixItems": [{"const": 1}], "minItems": 1}, (DRAFT_2020,), ["[1]"], ["[2]"]),
        ({"type": "array", "prefixItems": [{"const": 1}]}, (DRAFT_4, DRAFT_7, DRAFT_2019), ["[2]"], []),
        ({"type": "string", "const": "a"}, (DRAFT_4,), ['"b"'], []),
        ({"type": "string", "const": "a"}, (DRAFT_6, DRAFT_7), ['"a"'], ['"b"']),
        (
            {"definitions": {"n": {"type": "null"}}, "$ref": "#/definitions/n", "type": "string"},
            (DRAFT_7,),
            ["null"],
            [],
        ),
        ({"$defs": {"n": {"type": "null"}}, "$ref": "#/$defs/n"}, tuple(DRAFTS), ["null"], ["1"]),
        ({"type": "integer", "if": {}, "then": False}, (DRAFT_4, DRAFT_6), ["1"], []),
        ({"type": "array", "items": True, "additionalItems": False}, (DRAFT_6, DRAFT_7), ["[1]"], []),
        ({"type": "null", "divisibleBy": 2, "extends": {"type": "string"}}, tuple(DRAFTS), ["null"], []),
    ],
)
def test_keywords_are_read_by_the_draft(
    schema: dict[str, Any], drafts: tuple[str, ...], inside: list[str], outside: list[str]
) -> None:
    for draft in drafts:
        dfa = schema_language({"$schema": draft, **schema})
        assert [text for text in inside if not dfa.accepts(text.encode())] == [], draft
        assert [text for text in outside if dfa.accepts(text.encode())] == [], draft
        check_texts({"$schema": draft, **schema}, 10)


COUNT = {"definitions": {"count": {"type": "integer"}}}
TO_COUNT = {"type": "object", "properties": {"n": {"$ref": "#/definitions/count"}}}


def beside(**box: Any) -> dict[str, Any]:
    return COUNT | {"properties": {"box": box | TO_COUNT}}


@pytest.mark.parametrize(
    ("schema", "cause"),
    [
        # A base that a nested schema moves: what its $ref names is no longer there.
        ({"$schema": DRAFT_4, "id": "http://a.b/root.json"} | beside(id="http://a.b/box.json"), "keyword id at"),
        ({"$schema": DRAFT_4} | beside(id="box.json"), "keyword id at"),
        ({"$schema": DRAFT_6} | beside(**{"$id": "http://a.b/box.json"}), r"keyword \$id at"),
        ({"$schema": DRAFT_7} | beside(**{"$id": "/box"}), r"keyword \$id at"),
        ({"$schema": DRAFT_2019} | beside(**{"$id": "box.json"}), r"keyword \$id at"),
        (beside(**{"$id": "box.json"}), r"keyword \$id at"),
        # References that only the final check follows.
        ({"type": "integer", "anyOf": [{"type": "string", "allOf": [{"$ref": "#/nope"}]}, {}]}, "leads nowhere"),
        ({"type": "integer", "anyOf": [{"type": "string", "allOf": [{"$ref": "#x"}]}, {}]}, "#x"),
        ({"type": "integer", "anyOf": [{"type": "null", "not": {"$ref": "http://a.b/c"}}, {}]}, "http://a.b/c"),
        ({"enum": [1], "if": {"maximum": 0}, "then": {"$ref": "#/nope"}}, "leads nowhere"),
        ({"type": "integer", "anyOf": [{"type": "string", "allOf": [{"$ref": "#"}]}, {}]}, "recursion has no end"),
        ({"$schema": DRAFT_4, "$ref": 5}, "5 at .* doesn't lead"),
        ({"$ref": "#/type/0", "type": ["null"]}, "no schema"),
        ({"$ref": "#/allOf/-1", "allOf": [{"type": "null"}]}, "leads nowhere"),
        ({"$ref": "#/minimum/x", "minimum": 3}, "leads nowhere"),
        ({"enum": [1], "$dynamicRef": "#meta"}, "#meta"),
        ({"$schema": DRAFT_2019, "enum": [1], "$recursiveRef": "#"}, "recursion has no end"),
        # What no meta-schema looks at.
        ({"$ref": "#/x/a", "x": {"a": {"type": ["text", "integer"]}}}, "'#/x/a' leads to is invalid"),
        ({"$ref": "#/x/a", "x": {"a": {"type": "integer", "minimum": "1"}}}, "'#/x/a' leads to is invalid"),
        ({"$schema": DRAFT_7, "$ref": "#/$defs/a", "$defs": {"a": {"pattern": "("}}}, "leads to is invalid"),
        ({"$schema": DRAFT_4, **BOTH, "patternProperties": {"(": {}}}, "no valid regular expression"),
        # Another draft inside.
        ({"properties": {"a": {"$schema": DRAFT_4, "const": 1}}}, r"keyword \$schema at \$\.a .* const differs"),
        ({"$schema": DRAFT_7, "not": {"$schema": DRAFT_2020, "items": {"minContains": 1}}}, "minContains differs"),
        ({"$schema": DRAFT_7, "items": {"$schema": DRAFT_2020, "items": [{}]}}, "items differs"),
        (
            {
                "$schema": DRAFT_7,
                **COUNT,
                "items": {"$schema": DRAFT_2020, **TO_COUNT["properties"]["n"], "type": "null"},
            },
            "type differs",
        ),
        ({"properties": {"a": {"$schema": "http://a.b/c"}}}, "none that can be read"),
        # What jsonschema reads differently or not at all.
        ({"$schema": DRAFT_2019, "items": True, "unevaluatedItems": False}, "keyword unevaluatedItems at"),
    ],
)
def test_what_would_break_the_final_check_is_refused(schema: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConstraintError, match=cause):
        schema_language(schema)


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"type": "strng"}, r"\$\.type: \"strng\" is no type\. The types are array, boolean, "),
        ({"items": {"type": ["null", "text"]}}, r"type\[1\]: \"text\" is no type\. The types "),
        ({"properties": {"a": {"required": True}}}, r"true is no list of names\. It belongs beside properties"),
        (
            {"$schema": DRAFT_4, "properties": {"required": True}},
            r"\$\.properties\.required: true is not an object",
        ),
        ({"properties": ["a"]}, r'\$\.properties: \["a"\] is not an object\.'),
        ({"properties": {"a": None}}, r"\$\.properties\.a: null is no schema\."),
        ({"required": "a" * 300}, r'\$\.required: "a{59}\.\.\. is not an array\.$'),
    ],
)
def test_what_is_wrong_with_a_schema_is_said_of_its_json(schema: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConstraintError, match=fault):
        schema_language(schema)


@pytest.mark.parametrize(
    "schema",
    [
        # A nested id that no $ref depends on is a comment, and so is one beside a $ref.
        {"$schema": DRAFT_4, "properties": {"a": {"id": "/a", "type": "string"}}, "type": "object"},
        {"$schema": DRAFT_4, "type": "object", "properties": {"id": {"type": "integer"}, "a": {"$ref": "#"}}},
        {"$schema": DRAFT_7, **COUNT, "items": {"$id": "x", "$ref": "#/definitions/count"}, "type": "array"},
        {"$schema": DRAFT_7, **COUNT, "items": {"$id": "#x", **TO_COUNT}, "type": "array"},
        {"$schema": DRAFT_4, "id": "http://[no address", **COUNT, **TO_COUNT},
        {"$schema": DRAFT_2020, "$id": "urn:x", "$anchor": "y", **COUNT, **TO_COUNT},
        # So is the draft's own name, which is none where it is a property.
        {"$schema": DRAFT_7, "type": "object", "properties": {"a": {"$schema": DRAFT_7, "type": "null"}}},
        {
            "$schema": DRAFT_7,
            "type": "object",
            "properties": {"$schema": {"type": "string"}, "$ref": {"const": 1}},
        },
        # Another draft inside that reads what is there alike.
        {
            "$schema": DRAFT_2020,
            "type": "object",
            "properties": {"a": {"$schema": DRAFT_4, "type": "integer", "minimum": 1}},
        },
        {"$schema": DRAFT_7, "type": "array", "items": {"$schema": DRAFT_2020, "$id": "x", "const": 1}},
        {
            "$schema": DRAFT_7,
            "type": "object",
            "patternProperties": {"": {"type": "null"}},
            "additionalProperties": False,
        },
        # Nothing leads into these.
        {"$schema": DRAFT_7, "definitions": {"a": {"$ref": "http://a.b/c"}}, "type": "null"},
        {"$schema": DRAFT_7, "dependencies": {"$id": {"type": "array"}, "x": {"type": "object"}}, "type": "null"},
        {"$schema": DRAFT_7, "$ref": "#/dependencies/x", "dependencies": {"$id": {}, "x": {"type": "null"}}},
        # jsonschema's 2019-09 overlooks what a schema under additionalProperties evaluates.
        {
            "$schema": DRAFT_2019,
            "type": "object",
            "additionalProperties": {"type": "integer"},
            "unevaluatedProperties": False,
        },
        {
            "$schema": DRAFT_2019,
            "type": "object",
            "properties": {"a": True, "c": True},
            "allOf": [{"properties": {"a": True}, "additionalProperties": {"type": "integer"}}],
            "unevaluatedProperties": {"type": "null"},
        },
        # jsonschema looks at how many patterns there are before it looks at a name.
        {
            "$schema": DRAFT_7,
            "type": "object",
            "properties": {"x": {}, "y": {}, "z": {}},
            "patternProperties": {"(?P<n>x)": {"type": "null"}, "(?P<n>y)": {"type": "null"}},
            "additionalProperties": {"type": "integer"},
        },
        {"$schema": DRAFT_7, "type": "integer", "multipleOf": 3.0, "minimum": 1},
        {"$schema": DRAFT_7, "type": "integer", "multipleOf": 3, "minimum": 2**53},
        {"$schema": DRAFT_7, "type": "number", "multipleOf": 0.01, "minimum": 0},
        {"$schema": DRAFT_7, "type": "number", "multipleOf": 1.5, "minimum": 10},
        {"$schema": DRAFT_7, "type": "number", "multipleOf": 0.7},
        # Multiples that no double holds.
        {"$schema": DRAFT_7, "type": "integer", "multipleOf": 3.0, "minimum": 2**53},
        {"$schema": DRAFT_7, "type": "integer", "multipleOf": 1.5, "maximum": -(10**17)},
    ],
)
def test_what_is_accepted_passes_the_final_check(schema: dict[str, Any]) -> None:
    check_texts(schema, 30)


def test_a_validator_that_breaks_down_ends_no_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    form = read_form({"type": "array", "items": {"type": "null"}}, None, None)
    assert form is not None

    def breaks_down(*_: Any) -> bool:
        raise RecursionError

    monkeypatch.setattr(read_schema(True).__class__, "is_valid", breaks_down)
    form.check("[null]")
    with pytest.raises(ConstraintError):
        form.check("[1]")
    # Before the model runs it is worth an error.
    with pytest.raises(ConstraintError, match="report the schema"):
        schema_language({"type": "null"})


def test_what_the_validator_finds_wrong_is_an_error_before_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_schema(True).__class__, "is_valid", lambda *_: False)
    with pytest.raises(ConstraintError, match="'null', which ought to be valid by it, is not"):
        schema_language({"type": "null"})


def test_the_caller_keeps_the_schema() -> None:
    schema = {"$schema": "https://json-schema.org/draft-07/schema#", "$id": "x", "items": {"$id": "y"}}
    before = json.dumps(schema)
    schema_language(schema)
    assert json.dumps(schema) == before


def test_a_draft_is_found_as_jsonschema_finds_it() -> None:
    for draft, validator in DRAFTS.items():
        assert jsonschema.validators.validator_for({"$schema": draft}) is validator


@pytest.mark.parametrize(
    ("value", "integer", "both", "one"),
    [
        (1.0, {"type": "integer"}, ["1"], ["1.0", "2"]),
        ([1.0], {"type": "array", "items": {"type": "integer"}}, ["[1]"], ["[1.0]", "[2]", "[]", "[1, 1]"]),
    ],
)
def test_a_number_that_an_enum_holds_in_another_spelling(
    value: Any, integer: dict[str, Any], both: list[str], one: list[str]
) -> None:
    """In draft 4 1.0 is no integer, but 1 is a value of an enum with 1.0: both branches hold."""
    schema = {"$schema": DRAFT_4, "oneOf": [{"enum": [value]}, integer]}
    dfa = compile_schema(schema).dfa
    assert [text for text in one if not dfa.accepts(text.encode())] == []
    assert [text for text in both if dfa.accepts(text.encode())] == []
    check_texts(schema, 20)


def test_a_multiple_that_no_double_holds() -> None:
    """jsonschema divides in floating point, and raised."""
    compiled = compile_schema({"enum": [10**400, 3, 4], "multipleOf": 1.5})
    assert compiled.dfa.accepts(b"3")
    assert not compiled.dfa.accepts(b"4")
    judge = compile_schema({"type": "integer", "multipleOf": 1.5}).validator
    assert judge.is_valid(3 * 10**400)
    assert not judge.is_valid(10**400)


def test_openapi_is_read_as_its_draft() -> None:
    compile_schema({"$schema": "https://spec.openapis.org/oas/3.1/dialect/base", "type": "null"})
