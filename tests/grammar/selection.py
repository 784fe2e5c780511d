"""A hundred schemas of the kinds that people have and that were refused, or narrowed beyond use, before.

Each with documents that must be writable, as `json.dumps` writes them, and documents that must not. They stand for
kinds: what is here once is in collections of public schemas by the dozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    name: str
    schema: dict[str, Any]
    writable: tuple[Any, ...]
    unwritable: tuple[Any, ...] = ()


def closed(properties: dict[str, Any], *required: str, **rest: Any) -> dict[str, Any]:
    """An object of these properties only."""
    found = {"type": "object", "properties": properties, "additionalProperties": False, **rest}
    return found | ({"required": list(required)} if required else {})


def opened(properties: dict[str, Any], *required: str, **rest: Any) -> dict[str, Any]:
    """An object that says that it may have others."""
    return closed(properties, *required, additionalProperties=True, **rest)


def listed(items: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **rest}


def text(**rest: Any) -> dict[str, Any]:
    return {"type": "string", **rest}


def whole(**rest: Any) -> dict[str, Any]:
    return {"type": "integer", **rest}


def number(**rest: Any) -> dict[str, Any]:
    return {"type": "number", **rest}


TEXT, WHOLE, FLAG, NULL = text(), whole(), {"type": "boolean"}, {"type": "null"}
LONG = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. "


def some_of(*names: str) -> dict[str, Any]:
    return {"anyOf": [{"required": [name]} for name in names]}


SIZE = (
    Case(
        "sixteen texts of a counted length",
        closed({f"line{i}": text(maxLength=60) for i in range(16)}, *(f"line{i}" for i in range(16))),
        ({f"line{i}": "äöü" for i in range(16)}, {f"line{i}": "x" * 60 for i in range(16)}),
        ({f"line{i}": "x" * 61 for i in range(16)}, {f"line{i}": "x" for i in range(15)}),
    ),
    Case(
        "a text of a thousand characters",
        closed({"summary": text(maxLength=1000)}, "summary"),
        ({"summary": LONG * 15},),
        ({"summary": "x" * 1001},),
    ),
    Case(
        "a list of counted texts",
        closed({"posts": listed(text(maxLength=140), minItems=1, maxItems=8)}, "posts"),
        ({"posts": [LONG]}, {"posts": ["x" * 60] * 8}),
        ({"posts": []}, {"posts": ["x"] * 9}, {"posts": ["x" * 141]}),
    ),
    Case(
        "two groups of which one is there at least",
        closed(dict.fromkeys("abcdefgh", TEXT), allOf=[some_of(*"abcd"), some_of(*"efgh")]),
        ({"a": "1", "h": "2"}, {"b": "1", "c": "2", "e": "3"}, dict.fromkeys("abcdefgh", "x")),
        ({"a": "1"}, {"e": "1"}, {}),
    ),
    Case(
        "three groups of which one is there at least",
        closed(
            {f"{group}{i}": WHOLE for group in ("mail", "phone", "post") for i in range(3)},
            allOf=[some_of(*(f"{group}{i}" for i in range(3))) for group in ("mail", "phone", "post")],
        ),
        ({"mail0": 1, "phone2": 2, "post1": 3},),
        ({"mail0": 1, "phone2": 2}, {"mail0": 1, "mail1": 1, "mail2": 1}),
    ),
    Case(
        "an enum of 600 labels",
        closed({"ward": {"enum": [f"Ward {i * 37 % 600} of district {i % 7}" for i in range(600)]}}, "ward"),
        ({"ward": "Ward 37 of district 1"},),
        ({"ward": "Ward 38 of district 1"}, {"ward": ""}),
    ),
    Case(
        "forty optional properties",
        closed({f"option{i}": {"enum": ["on", "off", "auto"]} for i in range(40)}),
        ({}, {"option3": "on", "option39": "auto"}, {f"option{i}": "off" for i in range(40)}),
        ({"option3": "maybe"}, {"option40": "on"}),
    ),
    Case(
        "sixty required properties of several types",
        closed(
            {f"f{i}": {"type": ["string", "number", "null"]} for i in range(60)}, *(f"f{i}" for i in range(60))
        ),
        ({f"f{i}": [None, "a", 1.5][i % 3] for i in range(60)},),
        ({f"f{i}": None for i in range(59)},),
    ),
    Case(
        "an order with lines, addresses and bounds",
        closed(
            {
                "customer": closed(
                    {"name": text(minLength=1, maxLength=80), "mail": text(format="email")}, "name"
                ),
                "ship_to": {"$ref": "#/$defs/address"},
                "bill_to": {"$ref": "#/$defs/address"},
                "lines": listed(
                    closed(
                        {"sku": text(pattern="^[A-Z]{2}-[0-9]{4}$"), "count": whole(minimum=1, maximum=99)}, "sku"
                    ),
                    minItems=1,
                    maxItems=20,
                ),
            },
            *("customer", "ship_to", "lines"),
        )
        | {
            "$defs": {
                "address": closed(
                    {"street": text(maxLength=60), "zip": text(pattern="^[0-9]{5}$")}, "street", "zip"
                )
            }
        },
        (
            {
                "customer": {"name": "Zoë", "mail": "zoe@example.org"},
                "ship_to": {"street": "Hauptstraße 1", "zip": "10115"},
                "lines": [{"sku": "AB-1234", "count": 2}, {"sku": "ZZ-0001"}],
            },
        ),
        ({"customer": {"name": ""}, "ship_to": {"street": "x", "zip": "1"}, "lines": []},),
    ),
    Case(
        "a tree",
        {
            "$ref": "#/$defs/node",
            "$defs": {"node": closed({"value": WHOLE, "children": listed({"$ref": "#/$defs/node"})}, "value")},
        },
        ({"value": 1, "children": [{"value": 2, "children": [{"value": 3}]}, {"value": 4}]},),
        ({"value": 1, "children": [{}]}, {"children": []}),
    ),
)

LISTS = (
    Case(
        "tags in any order",
        closed({"tags": listed(TEXT, uniqueItems=True)}, "tags"),
        ({"tags": ["rust", "llm"]}, {"tags": ["python", "pytest"]}, {"tags": []}),
        ({"tags": ["a", "a"]}, {"tags": ["rust", "llm", "rust"]}),
    ),
    Case(
        "weekdays in any order",
        listed({"enum": ["mon", "tue", "wed", "thu", "fri"]}, uniqueItems=True, minItems=1),
        (["wed", "mon"], ["fri", "thu", "wed", "tue", "mon"]),
        (["mon", "mon"], [], ["sun"]),
    ),
    Case(
        "numbers that differ",
        listed(whole(minimum=1, maximum=49), uniqueItems=True, minItems=3, maxItems=3),
        ([7, 3, 21], [1, 2, 3]),
        ([7, 7, 1], [1, 2]),
    ),
    Case(
        "a pair that differs in kind",
        {"type": "array", "prefixItems": [TEXT, WHOLE], "items": False, "minItems": 2, "uniqueItems": True},
        (["a", 1],),
        ([1, "a"], ["a"], ["a", 1, 2]),
    ),
    Case(
        "contains anywhere",
        listed({"type": ["string", "null"]}, contains={"const": "root"}),
        (["root"], ["a", "root"], ["a", None, "root", "b"]),
        ([], ["a"], [None]),
    ),
    Case(
        "contains once",
        listed({"enum": ["x", "o"]}, contains={"const": "x"}, maxContains=1),
        (["o", "x", "o"], ["x"]),
        (["o"], ["x", "x"], ["x", "o", "x"]),
    ),
    Case(
        "contains nothing of it",
        listed({"enum": ["a", "b", "stop"]}, contains={"const": "stop"}, minContains=0, maxContains=0),
        ([], ["a", "b"]),
        (["stop"], ["a", "stop"]),
    ),
    Case(
        "a closed tuple by unevaluatedItems",
        {"type": "array", "allOf": [{"prefixItems": [TEXT, WHOLE]}], "unevaluatedItems": False},
        (["a", 1], ["a"]),
        (["a", 1, 2], [1]),
    ),
    Case(
        "values beside unevaluatedItems",
        {"enum": [[1, 2], [3]], "anyOf": [{"items": WHOLE}], "unevaluatedItems": False},
        ([1, 2], [3]),
        ([2],),
    ),
)

NUMBERS = (
    Case(
        "a price in cents",
        closed({"price": number(multipleOf=0.01, minimum=0)}, "price"),
        ({"price": 19.99}, {"price": 5}, {"price": 0.1}),
        ({"price": 0.005}, {"price": -0.01}),
    ),
    Case(
        "a price in cents, of draft 4",
        {"$schema": "http://json-schema.org/draft-04/schema#"}
        | closed({"price": number(multipleOf=0.01, minimum=0, exclusiveMinimum=True)}, "price"),
        ({"price": 1299.5},),
        ({"price": 0}, {"price": 1.999}),
    ),
    Case("halves", number(multipleOf=0.5, minimum=0, maximum=10), (0, 4.5, 10), (4.25, 10.5, -0.5)),
    Case("quarters", listed(number(multipleOf=0.25)), ([0.25, -1.75, 3],), ([0.3],)),
    Case("tenths of degrees", number(multipleOf=0.1, minimum=-50, maximum=60), (36.6, -1.1, 0), (36.65, 61)),
    Case("multiples of five", whole(multipleOf=5, minimum=0, maximum=100), (0, 15, 100), (7, 105)),
    Case("a share", number(minimum=0, maximum=1), (0, 1, 0.25, 1e-05, 0.3333333333333333), (1.5, -0.1)),
    Case(
        "coordinates",
        closed({"lat": number(minimum=-90, maximum=90), "lon": number(minimum=-180, maximum=180)}),
        ({"lat": 52.51627377196238, "lon": 13.377702},),
        ({"lat": 90.5},),
    ),
    Case("an id beyond fifteen digits", whole(minimum=0), (1234567890123456789,), (-1,)),
    Case("a positive number", number(exclusiveMinimum=0), (0.5, 3, 1e-05), (0, -2)),
)

FORMATS = (
    Case(
        "a server",
        closed({"url": text(format="uri")}, "url"),
        (
            {"url": "http://localhost:8000/health"},
            {"url": "https://example.org/a?b=c#d"},
            {"url": "http://10.0.0.1:80"},
            {"url": "mailto:zoe@example.org"},
            {"url": "urn:isbn:0451450523"},
        ),
        ({"url": "no uri"}, {"url": "//example.org"}, {"url": "http://a b"}),
    ),
    Case(
        "a link in a page",
        text(format="uri-reference"),
        ("/about", "#top", "../x?y=1", "https://example.org/"),
        ("a b",),
    ),
    Case(
        "a host",
        text(format="hostname"),
        ("localhost", "db-1", "example.org", "a.b.c-d.net"),
        ("-a", "a..b", "a_b", ""),
    ),
    Case(
        "an address of version 6",
        text(format="ipv6"),
        ("::1", "2001:db8::1", "fe80::1ff:fe23:4567:890a", "1:2:3:4:5:6:7:8"),
        ("1::2::3", "12345::", "example"),
    ),
    Case("an address of version 4", text(format="ipv4"), ("127.0.0.1",), ("256.1.1.1", "1.2.3")),
    Case("a duration", text(format="duration"), ("P1Y", "P1Y6M", "PT1H30M", "P3W", "P1DT12H"), ("P", "1Y", "PT")),
    Case(
        "a moment",
        text(format="date-time"),
        ("2024-02-29T23:59:59Z", "2024-01-01T00:00:00.5+01:00"),
        ("2024-13-01T00:00:00Z", "2024-01-01"),
    ),
    Case("a day", text(format="date"), ("2024-02-29",), ("2024-02-30", "24-1-1")),
    Case(
        "an address for mail",
        text(format="email"),
        ("zoe@example.org", "first.last+tag@sub.example.co.uk"),
        ("zoe", "@a.b"),
    ),
    Case("an identifier", text(format="uuid"), ("123e4567-e89b-12d3-a456-426614174000",), ("123e4567",)),
    Case("a pointer", text(format="json-pointer"), ("", "/a/b~1c"), ("a", "/~2")),
    Case("a format that nobody knows", text(format="color-name"), ("red",), (1,)),
)

PATTERNS = (
    Case("a name without digits", text(pattern=r"^\D+$"), ("José Müller", "日本"), ("a1", "")),
    Case("a word of any script", text(pattern=r"^[\p{L} ]+$"), ("Zoë", "naïve café"), ("a1",)),
    Case("capitals by property", text(pattern=r"^\p{Lu}\p{Ll}+$"), ("Österreich",), ("österreich", "A")),
    Case("a named group of ECMA", text(pattern=r"^(?<year>\d{4})-(?<month>\d{2})$"), ("2024-05",), ("24-05",)),
    Case("either case", text(pattern="(?i)^(yes|no)$"), ("YES", "no", "No"), ("maybe",)),
    Case(
        "a decimal of Pydantic",
        closed({"price": {"anyOf": [number(), text(pattern=r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$")]}}, "price"),
        ({"price": 19.99}, {"price": "19.99"}, {"price": "-0.5"}),
        ({"price": "-"}, {"price": True}, {"price": "a"}),
    ),
    Case("no dots in a row", text(pattern=r"^(?!\.)(?!.*\.\.)[a-z.]+[a-z]$"), ("a.b.c",), (".a", "a..b", "a.")),
    Case(
        "a password", text(pattern=r"^(?=.*[0-9])(?=.*[a-z])[0-9a-z]{4,12}$"), ("abc1", "1bcd"), ("abcd", "1234")
    ),
    Case("neither of two words", text(pattern="^(?!admin$|root$)[a-z]+$"), ("user", "roots"), ("root", "admin")),
    Case("a whole word", text(pattern=r"\bcat\b"), ("a cat!", "cat"), ("concat", "cats")),
    Case("escapes that none needs", text(pattern=r"^[\w\-\.]+\@[\w\-]+\/$"), ("a.b-c@d/",), ("a@b",)),
    Case("braces that are text", text(pattern=r"^\$\{[a-z]+\}$"), ("${home}",), ("$home",)),
    Case("a counter without a first number", text(pattern="^a{,3}$"), ("a{,3}",), ("aa",)),
    Case("white space", text(pattern=r"^\S+\s\S+$"), ("Zoë Müller", "a\u00a0b"), ("a", "a b c")),
    Case("everything but quotes", text(pattern="^[^\"']*$"), ("ça va?", ""), ("it's",)),
    Case(
        "a version",
        text(pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-[0-9A-Za-z-.]+)?$"),
        ("1.20.3", "0.1.0-rc.1"),
        ("01.2.3", "1.2"),
    ),
)

KIND = {"enum": ["card", "cash"]}
LOGIC = (
    Case(
        "no two of these together",
        closed({"body": TEXT, "file": TEXT}, **{"not": {"required": ["body", "file"]}}),
        ({}, {"body": "a"}, {"file": "b"}),
        ({"body": "a", "file": "b"},),
    ),
    Case(
        "not that property",
        closed({"a": WHOLE, "b": WHOLE}, **{"not": {"required": ["b"]}}),
        ({"a": 1}, {}),
        ({"b": 1},),
    ),
    Case("not an empty text", text(**{"not": {"const": ""}}), ("a",), ("",)),
    Case("not these values", text(**{"not": {"enum": ["none", "null"]}}), ("nobody", "no"), ("none", "null")),
    Case("not that pattern", text(**{"not": {"pattern": "^test"}}), ("a test", ""), ("tests",)),
    Case(
        "not an empty list",
        {"type": ["array", "string"], "items": WHOLE, "not": {"maxItems": 0}, "maxItems": 3},
        ([1],),
        ([], [1, 2, 3, 4]),
    ),
    Case("not below a bound", whole(**{"not": {"minimum": 10}}), (9, -3), (10, 11)),
    Case("neither of two", {"not": {"anyOf": [{"type": "object"}, {"type": "array"}]}}, (1, "a", None), ({}, [])),
    Case(
        "not a kind of object",
        closed({"kind": {"enum": ["a", "b", "c"]}}, "kind", **{"not": {"properties": {"kind": {"const": "c"}}}}),
        ({"kind": "a"},),
        ({"kind": "c"},),
    ),
    Case(
        "a member's number",
        closed(
            {"member": FLAG, "number": TEXT},
            "member",
            **{"if": {"properties": {"member": {"const": True}}}, "then": {"required": ["number"]}},
        ),
        ({"member": True, "number": "x"}, {"member": False}, {"member": False, "number": "x"}),
        ({"member": True},),
    ),
    Case(
        "one thing or else the other",
        closed(
            {"by": KIND, "digits": TEXT, "change": WHOLE},
            "by",
            **{
                "if": {"properties": {"by": {"const": "card"}}},
                "then": {"required": ["digits"]},
                "else": {"required": ["change"]},
            },
        ),
        ({"by": "card", "digits": "1"}, {"by": "cash", "change": 3}),
        ({"by": "card", "change": 3}, {"by": "cash"}),
    ),
    Case(
        "several conditions",
        closed(
            {"by": {"enum": ["bus", "car", "foot"]}, "line": WHOLE, "plate": TEXT},
            "by",
            allOf=[
                {"if": {"properties": {"by": {"const": "bus"}}}, "then": {"required": ["line"]}},
                {"if": {"properties": {"by": {"const": "car"}}}, "then": {"required": ["plate"]}},
            ],
        ),
        ({"by": "bus", "line": 5}, {"by": "car", "plate": "x"}, {"by": "foot"}),
        ({"by": "bus"}, {"by": "car", "line": 1}),
    ),
    Case(
        "a condition on a type",
        {"type": ["string", "integer"], "if": {"type": "string"}, "then": {"minLength": 2}},
        ("ab", 1),
        ("a", None),
    ),
    Case(
        "told apart by a tag",
        listed(
            {
                "oneOf": [
                    {
                        "properties": {"t": {"enum": ["row"]}, "n": WHOLE},
                        "required": ["t", "n"],
                        "additionalProperties": False,
                    },
                    {
                        "properties": {"t": {"enum": ["key"]}, "k": TEXT},
                        "required": ["t", "k"],
                        "additionalProperties": False,
                    },
                ]
            }
        ),
        ([{"t": "row", "n": 1}, {"t": "key", "k": "a"}],),
        ([{"t": "row", "k": "a"}], [1]),
    ),
    Case(
        "told apart by a pattern",
        {"oneOf": [text(pattern="^[0-9]+$"), text(pattern="^[a-z]+$")]},
        ("12", "ab"),
        ("a1", ""),
    ),
    Case(
        "overlapping bounds",
        {"oneOf": [whole(minimum=0, maximum=10), whole(minimum=5, maximum=20)]},
        (3, 15),
        (7, 21, -1),
    ),
    Case(
        "a day or a word",
        {"anyOf": [text(format="date"), {"enum": ["today"]}]},
        ("2024-05-01", "today"),
        ("now",),
    ),
    Case("a value or a list of it", {"oneOf": [TEXT, listed(TEXT)]}, ("a", ["a", "b"]), (1, [1])),
    Case(
        "one of two properties",
        closed({"path": TEXT, "url": TEXT}, oneOf=[{"required": ["path"]}, {"required": ["url"]}]),
        ({"path": "a"}, {"url": "b"}),
        ({}, {"path": "a", "url": "b"}),
    ),
    Case(
        "a discriminated union",
        {
            "$defs": {
                "cat": closed({"type": {"const": "cat"}, "lives": WHOLE}, "type"),
                "dog": closed({"type": {"const": "dog"}, "good": FLAG}, "type"),
            },
            "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
            "discriminator": {"propertyName": "type", "mapping": {"cat": "#/$defs/cat", "dog": "#/$defs/dog"}},
        },
        ({"type": "cat", "lives": 9}, {"type": "dog", "good": True}),
        ({"type": "dog", "lives": 9}, {"type": "cow"}),
    ),
    Case(
        "a branch that can't be guaranteed is left out",
        {"anyOf": [WHOLE, text(pattern=r"^(a+)\1$")]},
        (1,),
        ("aaa", None),
    ),
)

OBJECTS = (
    Case(
        "others beside listed ones",
        opened({"id": WHOLE}, "id"),
        ({"id": 1, "note": "x"}, {"id": 1}),
        ({"note": "x"}, {"id": "x"}),
    ),
    Case(
        "others of a schema",
        closed({"id": WHOLE}, "id", additionalProperties=TEXT),
        ({"id": 1, "note": "x"},),
        ({"id": 1, "note": 2},),
    ),
    Case(
        "patterns of names beside listed ones",
        closed({"name": TEXT}, "name", patternProperties={"^x-": TEXT}),
        ({"name": "a", "x-b": "c"}, {"name": "a"}),
        ({"name": "a", "y": "c"}, {"name": "a", "x-b": 1}),
    ),
    Case(
        "patterns of names only",
        {"type": "object", "patternProperties": {"^[a-z]+$": WHOLE}, "additionalProperties": False},
        ({}, {"a": 1, "bc": 2}),
        ({"A": 1}, {"a": "x"}),
    ),
    Case(
        "two patterns of names",
        {"type": "object", "patternProperties": {"^n_": WHOLE, "^s_": TEXT}, "additionalProperties": False},
        ({"n_a": 1, "s_b": "x"}, {"s_b": "x"}),
        ({"n_a": "x"}, {"o": 1}),
    ),
    Case(
        "a pattern that matches every name",
        {"type": "object", "patternProperties": {"": WHOLE}},
        ({"a": 1}, {}),
        ({"a": "x"},),
    ),
    Case(
        "a map with some names at least",
        closed({"scores": {"type": "object", "additionalProperties": number(), "minProperties": 2}}, "scores"),
        ({"scores": {"ann": 0.5, "bob": 2}},),
        ({"scores": {"ann": 1}},),
    ),
    Case(
        "a map of lists",
        {"type": "object", "additionalProperties": listed(TEXT)},
        ({}, {"a": ["b"], "c": []}),
        ({"a": "b"},),
    ),
    Case(
        "names of a kind",
        {"type": "object", "propertyNames": {"pattern": "^[a-z]{2}$"}, "additionalProperties": TEXT},
        ({"de": "ja", "en": "yes"},),
        ({"eng": "yes"},),
    ),
    Case(
        "closed over what an allOf adds",
        {
            "$defs": {"base": {"type": "object", "properties": {"id": WHOLE}, "required": ["id"]}},
            "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"name": TEXT}, "required": ["name"]}],
            "unevaluatedProperties": False,
        },
        ({"id": 1, "name": "a"},),
        ({"id": 1}, {"id": 1, "name": "a", "x": 1}),
    ),
    Case(
        "inherited properties first",
        {
            "$defs": {"base": {"type": "object", "properties": {"id": WHOLE}, "required": ["id"]}},
            "type": "object",
            "allOf": [{"$ref": "#/$defs/base"}],
            "properties": {"name": TEXT},
            "required": ["name"],
        },
        ({"id": 1, "name": "a"},),
        ({"name": "a"}, {"id": 1}),
    ),
    Case(
        "patterns closed by unevaluatedProperties",
        {"type": "object", "patternProperties": {"^x_": TEXT}, "unevaluatedProperties": False},
        ({"x_a": "b"}, {}),
        ({"y": "b"},),
    ),
    Case(
        "a free map with a dependency",
        {"type": "object", "additionalProperties": TEXT, "dependentRequired": {"card": ["address"]}},
        ({"foo": "1"}, {"card": "1", "address": "2"}, {}),
        ({"card": "1"}, {"foo": 1}),
    ),
    Case(
        "a dependency of draft 7",
        {"$schema": "http://json-schema.org/draft-07/schema#"}
        | closed({"a": TEXT, "b": TEXT}, dependencies={"a": ["b"]}),
        ({}, {"b": "x"}, {"a": "x", "b": "y"}),
        ({"a": "x"},),
    ),
    Case(
        "anything in a property",
        closed({"payload": {}}, "payload"),
        ({"payload": {"a": [1, None]}}, {"payload": "x"}),
        ({},),
    ),
    Case("some property at least", closed({"a": WHOLE, "b": WHOLE}, minProperties=1), ({"a": 1}, {"b": 2}), ({},)),
)

READING = (
    Case(
        "an anchor",
        {"$defs": {"a": {"$anchor": "word", **TEXT}}, "type": "array", "items": {"$ref": "#word"}},
        (["a"], []),
        ([1],),
    ),
    Case(
        "an id of draft 4",
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "definitions": {"a": {"id": "#n", **WHOLE}},
            **listed({"$ref": "#n"}),
        },
        ([1],),
        (["a"],),
    ),
    Case(
        "the schema's own name",
        {"$id": "https://example.org/tree.json", **closed({"next": {"$ref": "https://example.org/tree.json"}})},
        ({"next": {"next": {}}},),
        ({"next": 1},),
    ),
    Case(
        "a schema inside by its name",
        {
            "$id": "https://example.org/all.json",
            "$defs": {"p": {"$id": "point.json", **closed({"x": WHOLE}, "x")}},
            **listed({"$ref": "point.json"}),
        },
        ([{"x": 1}],),
        ([{}],),
    ),
    Case(
        "a name at the end of a dynamic reference",
        {"$dynamicAnchor": "node", **closed({"child": {"$dynamicRef": "#node"}})},
        ({"child": {"child": {}}},),
        ({"child": 1},),
    ),
    Case(
        "null as OpenAPI 3.0 says it",
        closed({"note": text(nullable=True), "at": {"$ref": "#/$defs/d", "nullable": True}}, "note")
        | {"$defs": {"d": text(format="date")}},
        ({"note": None, "at": None}, {"note": "x", "at": "2024-01-01"}),
        ({"note": 1},),
    ),
    Case("bounds as OpenAPI 3.0 says them", whole(minimum=0, exclusiveMinimum=True), (1,), (0,)),
    Case(
        "a list of items before 2020-12",
        {"type": "array", "items": [TEXT, WHOLE], "additionalItems": False},
        (["a", 1],),
        (["a", 1, 2], [1]),
    ),
    Case(
        "a server's wrapper",
        {"name": "person", "strict": True, "schema": closed({"a": TEXT}, "a")},
        ({"a": "x"},),
        (5, []),
    ),
    Case(
        "a tool's definition",
        {"name": "weather", "description": "", "parameters": closed({"city": TEXT}, "city")},
        ({"city": "Rom"},),
        ({}, None),
    ),
    Case(
        "a part of draft 4",
        {
            "$defs": {"n": {"$schema": "http://json-schema.org/draft-04/schema#", **whole(minimum=1)}},
            "$ref": "#/$defs/n",
        },
        (1,),
        (0,),
    ),
)

SELECTION = (*SIZE, *LISTS, *NUMBERS, *FORMATS, *PATTERNS, *LOGIC, *OBJECTS, *READING)
