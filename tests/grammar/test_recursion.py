"""How often references may lead back to themselves."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from llm_diffusiongemma.grammar.compiler import Compiler
from llm_diffusiongemma.grammar.dialects import read_schema
from llm_diffusiongemma.grammar.fitting import DOCUMENT
from llm_diffusiongemma.grammar.layout import Layout
from llm_diffusiongemma.grammar.places import LIMITS, Place
from llm_diffusiongemma.grammar.recursion import ranks
from llm_diffusiongemma.grammar.schema import schema_language


def _web(number: int) -> dict[str, Any]:
    """Objects of so many kinds, each of which may have all the others in it."""
    kinds = {
        f"k{each}": {
            "type": "object",
            "properties": {f"p{other}": {"$ref": f"#/$defs/k{other}"} for other in range(number)},
            "additionalProperties": False,
        }
        for each in range(number)
    }
    return {"$defs": kinds, "$ref": "#/$defs/k0"}


def test_references_that_lead_back() -> None:
    schema = {
        "$defs": {
            "leaf": {"type": "string"},
            "a": {"properties": {"b": {"$ref": "#/$defs/b"}}},
            "b": {"properties": {"a": {"$ref": "#/$defs/a"}, "c": {"$ref": "#/$defs/c"}}},
            "c": {"properties": {"b": {"$ref": "#/$defs/b"}, "leaf": {"$ref": "#/$defs/leaf"}}},
            "own": {"items": {"$ref": "#/$defs/own"}},
        },
        "properties": {"a": {"$ref": "#/$defs/a"}, "own": {"$ref": "#/$defs/own"}},
        "examples": [{"$ref": "#/nowhere"}],
    }
    found = ranks(schema)
    assert found.keys() == {f"#/$defs/{name}" for name in ("a", "b", "c", "own")}
    a, b, c, own = (found[f"#/$defs/{name}"] for name in ("a", "b", "c", "own"))
    assert a.group == b.group == c.group != own.group
    assert a.order < b.order < c.order


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_every_circle_has_a_step_back(number: int) -> None:
    found = ranks(_web(number))
    order = [found[f"#/$defs/k{each}"].order for each in range(number)]
    assert len(set(order)) == number
    for circle in itertools.permutations(order):
        assert any(after <= before for before, after in zip(circle, (*circle[1:], circle[0]), strict=True))


def test_many_references_to_each_other_are_few_places() -> None:
    compiler = Compiler(read_schema(_web(14)), LIMITS[-1], Layout.ONE_LINE)
    compiler.language(DOCUMENT, Place())
    assert compiler.visits < 1000


def test_a_reference_may_lead_back_five_times() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False}
    dfa = schema_language(schema)
    value: dict[str, Any] = {}
    for depth in range(6):
        assert dfa.accepts(json.dumps(value).encode()) is (depth < 5)
        value = {"a": value}
