"""not, if and oneOf: what is written is what jsonschema takes, document by document."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import jsonschema
import pytest

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar.schema import compile_schema

VALUES: tuple[Any, ...] = (True, False, None, 1, 2, "x", "yy")
BASE = {
    "type": "object",
    "properties": {"a": {"enum": [True, 1, "x"]}, "b": {"enum": [False, 2, "yy"]}, "c": {"type": "boolean"}},
}
# All that the base can be, and some of what it can't.
DOCUMENTS: list[Any] = [
    {name: value for name, value in zip("abc", values, strict=True) if value is not ...}
    for values in itertools.product((..., True, 1, "x"), (..., False, 2, "yy"), (..., True, False))
]


class Maker:
    """Random schemas of logic over the base's properties."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def value(self, depth: int) -> Any:
        """A schema of a property."""
        rng = self.rng
        if depth > 0 and rng.random() < 0.3:
            return self.logic(lambda: self.value(depth - 1))
        return rng.choice(
            [
                {"const": rng.choice(VALUES)},
                {"enum": rng.sample(VALUES, 2)},
                {"type": rng.choice(["boolean", "integer", "string"])},
                {"pattern": rng.choice(["x", "^y+$"])},
                {"minimum": 2},
                {"exclusiveMaximum": 2},
                {"multipleOf": 2},
                {"maxLength": 1},
                {"minLength": 2},
                True,
                False,
            ]
        )

    def object(self, depth: int) -> Any:
        rng = self.rng
        if depth > 0 and rng.random() < 0.7:
            return self.logic(lambda: self.object(depth - 1))
        return rng.choice(
            [
                {"required": rng.sample("abc", rng.choice((1, 2)))},
                {"properties": {rng.choice("abc"): self.value(1)}},
                {"properties": {name: self.value(1)}, "required": [name]} if (name := rng.choice("abc")) else {},
                {"properties": dict.fromkeys(rng.sample("abc", 2), True), "additionalProperties": False},
                {"dependentRequired": {rng.choice("abc"): [rng.choice("abc")]}},
                {"dependentSchemas": {rng.choice("abc"): {"required": [rng.choice("abc")]}}},
                {"minProperties": 2},
                {"maxProperties": 1},
                {"propertyNames": {"enum": ["a", "b"]}},
                {"patternProperties": {"a|b": self.value(0)}},
                {"type": "object"},
                {"type": ["string", "null"]},
            ]
        )

    def logic(self, part: Any) -> Any:
        rng = self.rng
        keyword = rng.choice(("not", "not", "if", "if", "oneOf", "oneOf", "anyOf", "allOf"))
        if keyword == "not":
            return {"not": part()}
        if keyword == "if":
            return {"if": part()} | {each: part() for each in rng.sample(("then", "else"), rng.choice((1, 2)))}
        return {keyword: [part() for _ in range(rng.choice((2, 2, 3)))]}


def check_all(schema: Any, documents: list[Any], complete: bool = True) -> None:
    """Fails if one of the documents is written that is not valid or, where `complete`, the other way round."""
    judge = jsonschema.Draft202012Validator(schema)
    valid = {json.dumps(document) for document in documents if judge.is_valid(document)}
    try:
        dfa = compile_schema(schema).dfa
    except ConstraintError:
        written = set()
    else:
        written = {text for text in map(json.dumps, documents) if dfa.accepts(text.encode())}
    assert written <= valid, (schema, sorted(written - valid))
    assert not complete or written == valid, (schema, sorted(valid - written))


@pytest.mark.parametrize("seed", range(8))
def test_logic_of_objects_is_exact(seed: int) -> None:
    maker = Maker(random.Random(seed))
    for _ in range(4):
        check_all(BASE | {"allOf": [maker.object(2)]}, DOCUMENTS)
