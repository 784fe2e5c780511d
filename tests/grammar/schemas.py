"""Schemas as they are met in the world: llm's schema DSL, Pydantic models, function calls, configuration files."""

from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import uuid
from typing import Annotated, Any, Literal

import llm
from pydantic import BaseModel, ConfigDict, Field, HttpUrl


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"
    BLUE = "light blue"


class Priority(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Dog(BaseModel):
    name: str
    good: bool


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    city: str = Field(min_length=1, max_length=40)
    postcode: str = Field(pattern=r"^\d{5}(-\d{4})?$")
    country: Literal["DE", "FR", "IT"] = "DE"


class Person(BaseModel):
    name: str
    age: Annotated[int, Field(ge=0, le=150)]
    nickname: str | None = None
    address: Address
    previous: list[Address] = []
    favourite: Colour | None = None


class Event(BaseModel):
    id: uuid.UUID
    day: datetime.date
    starts: datetime.datetime
    opens: datetime.time | None
    lasts: datetime.timedelta
    priority: Priority
    contact: str = Field(json_schema_extra={"format": "email"})
    page: HttpUrl | None = None
    host: ipaddress.IPv4Address


class Measurement(BaseModel):
    model_config = ConfigDict(extra="forbid")

    value: float
    share: float = Field(ge=0, le=1)
    positive: float = Field(gt=0)
    small: float = Field(gt=-0.5, lt=0.25)
    even: int = Field(multiple_of=2)
    level: int = Field(gt=-3, lt=1000)
    price: decimal.Decimal


class Tags(BaseModel):
    tags: set[str]
    numbers: set[int] = Field(min_length=1)
    colours: set[Colour]
    pair: tuple[str, int]
    many: tuple[bool, ...]
    three: list[int] = Field(min_length=3, max_length=3)
    up_to: list[str] = Field(max_length=4)


class Counts(BaseModel):
    counts: dict[str, int]
    nested: dict[str, list[Dog]]
    by_colour: dict[Colour, float] = {}


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Fish(BaseModel):
    kind: Literal["fish"]
    water: Literal["salt", "sweet"]


class Pets(BaseModel):
    pet: Annotated[Cat | Fish, Field(discriminator="kind")]
    others: list[Cat | Fish] | None = None
    either: int | str | None
    mixed: Dog | str


class Node(BaseModel):
    value: str
    children: list[Node] = []


class Link(BaseModel):
    value: int
    next: Link | None


class Anything(BaseModel):
    payload: Any
    settings: dict[str, Any]


class Base(BaseModel):
    id: int


class Derived(Base):
    title: Annotated[str, Field(min_length=2, max_length=10, pattern="^[A-Z]")]


def model(kind: type[BaseModel]) -> dict[str, Any]:
    return kind.model_json_schema()


def record(properties: dict[str, Any], *optional: str, **more: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, **more}


SCHEMAS: dict[str, dict[str, Any]] = {
    "dsl": llm.schema_dsl("name, age int"),
    "dsl types": llm.schema_dsl("name, age int, height float, alive bool: whether alive, bio: one sentence"),
    "dsl multi": llm.schema_dsl("name, age int, short_bio", multi=True),
    "dsl lines": llm.schema_dsl("headline: the main one\nscore float\nimportant bool"),
    "dog": model(Dog),
    "person": model(Person),
    "person in a list": {"type": "object", "properties": {"items": {"type": "array", "items": model(Dog)}}},
    "event": model(Event),
    "measurement": model(Measurement),
    "tags": model(Tags),
    "counts": model(Counts),
    "pets": model(Pets),
    "recursive list": model(Node),
    "linked list": model(Link),
    "anything": model(Anything),
    "derived": model(Derived),
    "any": {},
    "any object": {"type": "object"},
    "any array": {"type": "array"},
    "string": {"type": "string"},
    "enum at the top": {"enum": ["yes", "no", None, 3, {"a": [1.5, "ü"]}]},
    "sentiment": record(
        {
            "sentiment": {"type": "string", "enum": ["positive", "neutral", "negative"]},
            "confidence": {"type": "number"},
        },
        additionalProperties=False,
    ),
    "openai strict": {
        "type": "object",
        "properties": {
            "steps": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"explanation": {"type": "string"}, "output": {"type": "string"}},
                    "required": ["explanation", "output"],
                    "additionalProperties": False,
                },
            },
            "final_answer": {"type": "string"},
        },
        "required": ["steps", "final_answer"],
        "additionalProperties": False,
    },
    "function call": record(
        {
            "location": {"type": "string", "description": "The city, e.g. San Francisco"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14, "default": 3},
        },
        "unit",
        "days",
    ),
    "invoice": record(
        {
            "number": {"type": "string", "pattern": "^INV-[0-9]{4,8}$"},
            "date": {"type": "string", "format": "date"},
            "currency": {"type": "string", "pattern": "^[A-Z]{3}$"},
            "lines": {
                "type": "array",
                "minItems": 1,
                "items": record(
                    {
                        "description": {"type": "string", "minLength": 1},
                        "quantity": {"type": "integer", "minimum": 1},
                        "unit_price": {"type": "number", "minimum": 0},
                    }
                ),
            },
            "total": {"type": "number", "exclusiveMinimum": 0},
        },
    ),
    "geojson point": record(
        {
            "type": {"const": "Point"},
            "coordinates": {
                "type": "array",
                "prefixItems": [
                    {"type": "number", "minimum": -180, "maximum": 180},
                    {"type": "number", "minimum": -90, "maximum": 90},
                ],
                "items": False,
                "minItems": 2,
            },
        }
    ),
    "draft 7 tuple": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [{"type": "string"}, {"type": "integer"}],
        "additionalItems": {"type": "boolean"},
        "minItems": 1,
        "maxItems": 4,
    },
    "draft 4 bounds": {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 9}},
        "required": ["n"],
    },
    "definitions": {
        "definitions": {"id": {"type": "integer", "minimum": 1}, "a/b~c": {"type": "null"}},
        "type": "object",
        "properties": {"id": {"$ref": "#/definitions/id"}, "n": {"$ref": "#/definitions/a~1b~0c"}},
        "required": ["id", "n"],
    },
    "all of": {
        "allOf": [
            record({"id": {"type": "integer"}}),
            record({"name": {"type": "string", "maxLength": 12}}),
            {"properties": {"id": {"minimum": 10}}},
        ]
    },
    "base and extension": {
        "$defs": {"base": record({"id": {"type": "string", "format": "uuid"}})},
        "allOf": [{"$ref": "#/$defs/base"}],
        "properties": {"extra": {"type": ["number", "null"]}},
        "required": ["extra"],
        "unevaluatedProperties": False,
    },
    "any of objects": {
        "type": "array",
        "items": {
            "anyOf": [record({"text": {"type": "string"}}), record({"image": {"type": "string", "format": "uri"}})]
        },
    },
    "one of required": {
        "type": "object",
        "properties": {"email": {"type": "string", "format": "email"}, "phone": {"type": "string"}},
        "oneOf": [{"required": ["email"]}, {"required": ["phone"]}],
    },
    "one of types": {
        "oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "array", "items": {"type": "null"}}]
    },
    "tagged union": {
        "oneOf": [
            record({"kind": {"const": "circle"}, "radius": {"type": "number"}}),
            record({"kind": {"const": "square"}, "side": {"type": "number"}}),
        ]
    },
    "untagged union": {
        "oneOf": [
            record({"radius": {"type": "number"}}),
            record({"side": {"type": "number"}, "turn": {"type": "number"}}),
        ]
    },
    "dependent": {
        "type": "object",
        "properties": {"card": {"type": "integer"}, "name": {"type": "string"}, "address": {"type": "string"}},
        "dependentRequired": {"card": ["address"]},
    },
    "odd names": record(
        {'quo"te': {"type": "null"}, "back\\slash": {"type": "boolean"}, "ключ 🗝": {"type": "integer"}, "": {}}
    ),
    "required but not listed": {
        "type": "object",
        "required": ["a", "b"],
        "properties": {"b": {"type": "boolean"}},
    },
    "headers": {
        "type": "object",
        "patternProperties": {"^x-[a-z]+$": {"type": "string"}},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    "translations": {
        "type": "object",
        "propertyNames": {"pattern": "^[a-z]{2}$"},
        "additionalProperties": {"type": "string"},
        "minProperties": 1,
    },
    "at least one": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}, "c": {"type": "integer"}},
        "minProperties": 1,
        "maxProperties": 2,
    },
    "binary tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": record(
                {"v": {"type": "integer"}, "l": {"$ref": "#/$defs/node"}, "r": {"$ref": "#/$defs/node"}}, "l", "r"
            )
        },
    },
    "arithmetic": {
        "$defs": {
            "term": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/sum"}]},
            "sum": {"type": "array", "items": {"$ref": "#/$defs/term"}, "minItems": 2, "maxItems": 3},
        },
        "$ref": "#/$defs/sum",
    },
    "menu": {
        "type": "object",
        "properties": {"label": {"type": "string"}, "items": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["label"],
    },
    "long text": record(
        {"title": {"type": "string", "maxLength": 120}, "body": {"type": "string", "maxLength": 5000}}
    ),
    "package": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "https://example.com/package.json",
        "title": "Package",
        "type": "object",
        "properties": {
            "name": {
                "type": "string",
                "pattern": "^(?:@[a-z0-9-~][a-z0-9-._~]*/)?[a-z0-9-~][a-z0-9-._~]*$",
                "maxLength": 24,
            },
            "version": {"type": "string", "pattern": "^\\d+\\.\\d+\\.\\d+"},
            "keywords": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
            "private": {"type": "boolean"},
            "dependencies": {"type": "object", "additionalProperties": {"type": "string"}},
            "author": {
                "anyOf": [
                    {"type": "string"},
                    record({"name": {"type": "string"}, "url": {"format": "uri"}}, "url"),
                ]
            },
        },
        "required": ["name", "version"],
    },
    "matrix": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
        "minItems": 3,
        "maxItems": 3,
    },
    "contains": {"type": "array", "items": {"type": "integer"}, "contains": {"minimum": 100}, "maxItems": 5},
    "quiz": record(
        {
            "question": {"type": "string"},
            "options": {"type": "array", "items": {"type": "string"}, "minItems": 4, "maxItems": 4},
            "answer": {"type": "integer", "minimum": 0, "maximum": 3},
            "difficulty": {"enum": ["easy", "medium", "hard"]},
        }
    ),
    "not null": record({"x": {"type": ["string", "integer", "null"], "not": {"type": "null"}}}),
}
