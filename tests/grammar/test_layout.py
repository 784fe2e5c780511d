"""The white space of a document: one layout from its first bracket to its last."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from llm_diffusiongemma.grammar import schema as schema_module
from llm_diffusiongemma.grammar.schema import compile_schema, schema_language

from .schemas import SCHEMAS

NESTED = {
    "type": "object",
    "properties": {
        "list": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
        "kind": {"enum": [{"a": [1, {}], "b": []}, [[]], "x"]},
        "any": {},
    },
}
DOCUMENTS: dict[str, tuple[Any, Any]] = {
    "dsl": (SCHEMAS["dsl"], {"name": "Ada", "age": 36}),
    "function call": (SCHEMAS["function call"], {"location": "Köln", "days": 3}),
    "openai strict": (
        SCHEMAS["openai strict"],
        {"steps": [{"explanation": "a", "output": "b"}] * 2, "final_answer": "c"},
    ),
    "nested": (
        NESTED,
        {"list": [{"n": 1}, {}], "kind": {"a": [1, {}], "b": []}, "any": {"x": [[], {"y": None}]}},
    ),
    "empty": (NESTED, {"list": [], "kind": [[]]}),
    "nothing": (NESTED, {}),
    "eight deep": (
        json.loads('{"type": "object", "properties": {"a": ' * 8 + '{"type": "null"}' + "}}" * 8),
        json.loads('{"a": ' * 8 + "null" + "}" * 8),
    ),
}


# The same schemas stand in several tests.
language_of = cache(lambda name: schema_language(DOCUMENTS[name][0]))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_json_dumps_writes(name: str) -> None:
    document = DOCUMENTS[name][1]
    dfa = language_of("nested" if DOCUMENTS[name][0] is NESTED else name)
    for options in ({}, {"indent": 2}, {"separators": (",", ":")}):
        assert dfa.accepts(json.dumps(document, ensure_ascii=False, **options).encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"list": [\n    {\n      "n": 1\n    }\n  ]}',
        '{\n  "list": [{"n": 1}]\n}',
        '{\n  "list": [\n    {\n      "n":1\n    }\n  ]\n}',
        '{\n  "list": [\n  ]\n}',
        '{\n  "kind": {"a": [1, {}], "b": []}\n}',
        '{\n  "any": [1]\n}',
        '{\n    "any": 1\n}',
        "{\n}",
    ],
)
def test_a_document_has_one_layout(text: str) -> None:
    json.loads(text)
    assert not language_of("nested").accepts(text.encode())


def test_a_document_that_is_too_large_indented_is_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"list": [{"n": 1}], "any": {"x": []}}
    monkeypatch.setattr(schema_module, "MOST_INDENTED_STATES", 10)
    compiled = compile_schema(NESTED)
    assert compiled.dfa.accepts(json.dumps(document).encode())
    assert not compiled.dfa.accepts(json.dumps(document, indent=2).encode())
    assert not any(each.by_size for each in compiled.lowered)


def test_what_is_too_much_indented_is_on_one_line() -> None:
    """It was refused."""
    inside = {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(20)}}
    dfa = compile_schema({"type": "object", "minProperties": 3, "additionalProperties": inside}).dfa
    assert dfa.accepts(b'{"a": {}, "b": {"p3": 1}, "c": {}}')
