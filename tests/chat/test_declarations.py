"""Schemas as Pydantic writes them, said with what Gemma's template shows."""

from __future__ import annotations

from typing import Any, Literal, Optional, Union

import llm
import pytest
from pydantic import BaseModel

from llm_diffusiongemma.chat.declarations import declare, simplify


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
        ({}, {}),
        ({"items": True}, {"items": {}}),
        ({"enum": [1, 2]}, {"enum": [1, 2], "type": "number"}),
        ({"const": True}, {"enum": [True], "type": "boolean"}),
        ({"allOf": [{"type": "string"}, {"description": "d"}]}, {"type": "string", "description": "d"}),
        ({"$ref": "#/$defs/Missing"}, {}),
    ],
)
def test_simplified(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert simplify(schema) == expected


def test_a_schema_that_contains_itself_ends() -> None:
    class Node(BaseModel):
        children: list[Node] = []

    Node.model_rebuild()
    assert simplify(Node.model_json_schema())
