"""Random schemas of every draft that put together what nobody would: keywords of any kind beside each other."""

from __future__ import annotations

import decimal
import random
from collections.abc import Iterator
from typing import Any

import jsonschema

DRAFTS: dict[str, Any] = {
    "http://json-schema.org/draft-04/schema#": jsonschema.Draft4Validator,
    "http://json-schema.org/draft-06/schema#": jsonschema.Draft6Validator,
    "http://json-schema.org/draft-07/schema#": jsonschema.Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": jsonschema.Draft201909Validator,
    "https://json-schema.org/draft/2020-12/schema": jsonschema.Draft202012Validator,
}


def in_decimals(validator: Any) -> Any:
    """A class of jsonschema's with multiples of decimals: in doubles 19.99 is no multiple of 0.01."""

    def multiple_of(_: Any, factor: float, value: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
        if isinstance(value, int | float) and not isinstance(value, bool):
            with decimal.localcontext(decimal.Context(prec=700)):
                if decimal.Decimal(str(value)) % decimal.Decimal(str(factor)):
                    yield jsonschema.ValidationError("no multiple")

    return jsonschema.validators.extend(validator, {"multipleOf": multiple_of})


NAMES = ("a", "b", "type", "x1", "é")
PATTERNS = ("^x", "a", "^[a-c]$", "^(a+)+$", "", "1$|^type$")
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    1.0,
    2.5,
    7,
    -3,
    "a",
    "x1",
    "",
    [],
    [1, "a"],
    {},
    {"a": 1},
    {"type": "a"},
)
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# Keywords that are read together with another one.
READ_BESIDE = {"if": ("then", "else"), "contains": ("minContains", "maxContains")}


def wild_schema(rng: random.Random, draft: str) -> dict[str, Any]:
    """A schema with its definitions, valid by its draft's meta-schema but for what an odd pattern may do."""
    maker = _Maker(rng, draft)
    definitions = {name: maker.schema(2) for name in ("one", "two")}
    return {"$schema": draft, "definitions": definitions, **maker.part(3)}


class _Maker:
    def __init__(self, rng: random.Random, draft: str) -> None:
        self.rng = rng
        self.dialect = DRAFTS[draft]
        self.has_booleans = "draft-04" not in draft
        self.keywords = [name for name in self.dialect.VALIDATORS if not name.startswith("$")]

    def schema(self, depth: int) -> Any:
        if self.has_booleans and self.rng.random() < 0.12:
            return self.rng.random() < 0.7
        return self.part(depth)

    def part(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        if depth <= 0:
            return rng.choice([{}, {"type": rng.choice(TYPES)}, {"enum": rng.sample(VALUES, 3)}, {"minimum": 1}])
        found: dict[str, Any] = {}
        if rng.random() < 0.6:
            found["type"] = rng.choice(
                ("object", "object", "array", "array", "string", "number", ["integer", "null"])
            )
        for keyword in rng.sample(self.keywords, rng.randint(1, 5)):
            for each in (keyword, *(name for name in READ_BESIDE.get(keyword, ()) if rng.random() < 0.6)):
                found[each] = self.value(each, depth - 1)
        if not self.has_booleans:
            found.pop("exclusiveMinimum", None), found.pop("exclusiveMaximum", None)
            for low in ("minimum", "maximum"):
                if low in found and rng.random() < 0.3:
                    found[f"exclusive{low.capitalize()}"] = rng.random() < 0.5
        if rng.random() < 0.1:
            found["$ref"] = rng.choice(("#/definitions/one", "#/definitions/two", "#", "#/nowhere", "#x", "y"))
        if rng.random() < 0.05:
            found[rng.choice(("id", "$id"))] = rng.choice(("http://example.com/x.json", "#x", "y"))
        return found

    def value(self, keyword: str, depth: int) -> Any:
        rng = self.rng
        match keyword:
            case "type":
                return rng.choice((rng.choice(TYPES), rng.sample(TYPES, 2)))
            case "enum":
                return rng.sample(VALUES, rng.randint(1, 6))
            case "const":
                return rng.choice(VALUES)
            case "properties" | "dependentSchemas":
                return {name: self.schema(depth) for name in rng.sample(NAMES, rng.randint(1, 3))}
            case "patternProperties":
                return {name: self.schema(depth) for name in rng.sample(PATTERNS, rng.choice((1, 1, 2)))}
            case "dependencies":
                return {rng.choice(NAMES): rng.choice((self.schema(depth), [rng.choice(NAMES)]))}
            case "dependentRequired":
                return {rng.choice(NAMES): [rng.choice(NAMES)]}
            case "required":
                return rng.sample(NAMES, rng.randint(1, 2))
            case "allOf" | "anyOf" | "oneOf" | "prefixItems":
                return [self.schema(depth) for _ in range(rng.randint(1, 3))]
            case "items" if "prefixItems" not in self.keywords and rng.random() < 0.5:
                return [self.schema(depth) for _ in range(rng.randint(1, 3))]
            case "pattern":
                return rng.choice(PATTERNS)
            case "format":
                return rng.choice(("date", "email", "uri", "hostname", "ipv4", "int32"))
            case "uniqueItems":
                return rng.random() < 0.7
            case "multipleOf":
                return rng.choice((1, 2, 0.5, 0.01, 3.0, 7, 1.5, 0.1, 1e-7))
            case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
                bounds = (-5, 0, 1, 3, 2.5, 10**17, 9007199254740993, -1e16, 0.1)
                return rng.choice(bounds)
            case "minLength" | "minItems" | "minProperties" | "minContains":
                return rng.choice((0, 0, 1, 1, 2))
            case "maxLength" | "maxItems" | "maxProperties" | "maxContains":
                return rng.choice((0, 1, 2, 3, 100))
        return self.schema(depth)
