"""Where references lead: by the text of each draft, and as stock jsonschema follows them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar.schema import schema_language

from .test_dialects import DRAFT_4, DRAFT_6, DRAFT_7, DRAFT_2019, DRAFT_2020, check_texts

INTEGER, NULL = {"type": "integer"}, {"type": "null"}
ROOT = "http://example.com/schemas/root.json"


def node(**reference: Any) -> dict[str, Any]:
    """A tree whose nodes have one child at most."""
    return {"type": "object", "properties": {"child": reference}, "additionalProperties": False}


TREES = [{}, {"child": {}}, {"child": {"child": {}}}]
NO_TREES = [[], {"child": 1}, {"child": {"other": {}}}]


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        # Names within the document.
        ({"$defs": {"a": {"$anchor": "n", **INTEGER}}, "$ref": "#n"}, [1], [None]),
        ({"definitions": {"a": {"$anchor": "n", **INTEGER}}, "$ref": "#n"}, [1], [None]),
        ({"$schema": DRAFT_4, "definitions": {"a": {"id": "#n", **INTEGER}}, "$ref": "#n"}, [1], [None]),
        ({"$schema": DRAFT_6, "definitions": {"a": {"$id": "#n", **INTEGER}}, "$ref": "#n"}, [1], [None]),
        (
            {"$schema": DRAFT_7, "$id": ROOT, "definitions": {"a": {"$id": "#n", **INTEGER}}, "$ref": "#n"},
            [1],
            [None],
        ),
        ({"$anchor": "top", **node(**{"$ref": "#top"})}, TREES, NO_TREES),
        # The name of the document itself.
        ({"$id": ROOT, **node(**{"$ref": ROOT})}, TREES, NO_TREES),
        ({"$id": ROOT, **node(**{"$ref": "root.json#"})}, TREES, NO_TREES),
        ({"$id": ROOT, **node(**{"$ref": "/schemas/root.json"})}, TREES, NO_TREES),
        ({"$schema": DRAFT_4, "id": f"{ROOT}#", **node(**{"$ref": f"{ROOT}#"})}, TREES, NO_TREES),
        ({"$id": ROOT, "$defs": {"a": INTEGER}, "$ref": f"{ROOT}#/$defs/a"}, [1], [None]),
        ({"$id": "urn:example:root", "$defs": {"a": INTEGER}, "$ref": "urn:example:root#/$defs/a"}, [1], [None]),
        ({"$id": "urn:example:root", **node(**{"$ref": "#"})}, TREES, NO_TREES),
        # A resource inside: its own name, pointers and anchors.
        ({"$id": ROOT, "$defs": {"a": {"$id": "a.json", **INTEGER}}, "$ref": "a.json"}, [1], [None]),
        ({"$defs": {"a": {"$id": "urn:a", **INTEGER}}, "$ref": "urn:a"}, [1], [None]),
        (
            {
                "$id": ROOT,
                "$defs": {"a": {"$id": "../b/a.json", **INTEGER}},
                "$ref": "http://example.com/b/a.json",
            },
            [1],
            [None],
        ),
        (
            {
                "$id": ROOT,
                "$defs": {"x": NULL, "a": {"$id": "a.json", "$ref": "#/$defs/x", "$defs": {"x": INTEGER}}},
                "$ref": "a.json",
            },
            [1],
            [None],
        ),
        (
            {
                "$id": ROOT,
                "$defs": {
                    "x": {"$anchor": "n", **NULL},
                    "a": {"$id": "a.json", "$ref": "#n", "$defs": {"x": {"$anchor": "n", **INTEGER}}},
                },
                "type": "array",
                "prefixItems": [{"$ref": "a.json"}, {"$ref": "#n"}, {"$ref": "a.json#n"}],
                "minItems": 3,
            },
            [[1, None, 2]],
            [[1, 2, 3], [None, None, 1], [1, None, None]],
        ),
        # A pointer into a resource stays in it, wherever it came from.
        (
            {
                "$schema": DRAFT_4,
                "definitions": {"box": {"id": "x.json", **node(**{"$ref": "#"})}},
                "properties": {"a": {"$ref": "#/definitions/box/properties/child"}},
                "required": ["a"],
                "additionalProperties": False,
            },
            [{"a": each} for each in TREES],
            [{"a": each} for each in NO_TREES],
        ),
        # Beside a $ref an id is nothing up to draft 7.
        (
            {
                "$schema": DRAFT_7,
                "$id": ROOT,
                "definitions": {"a": INTEGER},
                "items": {"$id": "http://a.b/c", "$ref": "#/definitions/a"},
                "type": "array",
            },
            [[1]],
            [[None]],
        ),
        # Pointers with escapes.
        ({"$defs": {"a/b~c%d é": INTEGER}, "$ref": "#/$defs/a~1b~0c%25d%20%C3%A9"}, [1], [None]),
        ({"$defs": {"a b": INTEGER, "a\tb": NULL}, "$ref": "#/$defs/a b"}, [1], [None]),
        ({"x": {"%25": [INTEGER]}, "$ref": "#/x/%2525/0"}, [1], [None]),
        # Names that are none: what is no schema has no id.
        ({"enum": [{"$id": ROOT}, 1], "$defs": {"a": {"const": {"$anchor": "n"}}}}, [1], [2]),
        (
            {"properties": {"$ref": INTEGER, "$id": NULL}, "type": "object"},
            [{"$ref": 1, "$id": None}],
            [{"$ref": "#"}],
        ),
        # References that could lead to several places and can't here.
        ({"$dynamicAnchor": "n", **node(**{"$dynamicRef": "#n"})}, TREES, NO_TREES),
        ({**node(**{"$dynamicRef": "#"})}, TREES, NO_TREES),
        ({"$defs": {"a": {"$anchor": "n", **INTEGER}}, "$dynamicRef": "#n"}, [1], [None]),
        (
            {"$defs": {"a": INTEGER}, "$ref": "#/$defs/a", "$dynamicRef": "#n", "$dynamicAnchor": "n2"}
            | {"$defs": {"a": INTEGER, "b": {"$dynamicAnchor": "n", "minimum": 3}}},
            [3],
            [2, None],
        ),
        (
            {
                "$id": ROOT,
                "$dynamicAnchor": "node",
                "$ref": "tree.json",
                "unevaluatedProperties": False,
                "$defs": {
                    "tree": {
                        "$id": "tree.json",
                        "$dynamicAnchor": "node",
                        "type": "object",
                        "properties": {"child": {"$dynamicRef": "#node"}},
                    }
                },
            },
            TREES,
            NO_TREES,
        ),
        ({"$schema": DRAFT_2019, **node(**{"$recursiveRef": "#"})}, TREES, NO_TREES),
        ({"$schema": DRAFT_2019, "$recursiveAnchor": True, **node(**{"$recursiveRef": "#"})}, TREES, NO_TREES),
        (
            {"$schema": DRAFT_7, "$defs": {"a": {"$dynamicRef": "#nowhere", **INTEGER}}, "$ref": "#/$defs/a"},
            [1],
            [None],
        ),
    ],
)
def test_where_references_lead(schema: dict[str, Any], inside: list[Any], outside: list[Any]) -> None:
    schema = {"$schema": DRAFT_2020, **schema}
    dfa = schema_language(schema)
    assert [each for each in inside if not dfa.accepts(json.dumps(each).encode())] == []
    assert [each for each in outside if dfa.accepts(json.dumps(each).encode())] == []
    check_texts(schema, 8)


@pytest.mark.parametrize(
    ("schema", "cause"),
    [
        ({"$ref": "http://json-schema.org/draft-07/schema#"}, "leads to another document, and none is fetched"),
        ({"properties": {"a": {"$ref": "other.json"}}}, r"'other.json' at \$\.a leads to another document"),
        ({"$id": ROOT, "$ref": "other.json#/$defs/a"}, "leads to another document"),
        ({"$ref": "http://[no address"}, "leads to another document"),
        ({"$ref": "#nowhere"}, "nothing in it has that"),
        ({"$id": ROOT, "$defs": {"a": {"$id": "a.json"}}, "$ref": "a.json#/$defs/b"}, "leads nowhere"),
        (
            {"$defs": {"a": {"$anchor": "n", **INTEGER}, "b": {"$anchor": "n", **NULL}}, "$ref": "#n"},
            "may lead to several places",
        ),
        (
            {"$defs": {"a": {"$id": "urn:n", **INTEGER}, "b": {"$id": "urn:n", **NULL}}, "$ref": "urn:n"},
            "several places",
        ),
        ({"$id": f"http://example.com/{'x' * 4000}/", "type": "null"}, "URI of more than 4,000 characters"),
        # Two lists that could each be the one around: which is meant depends on the way.
        (
            {
                "$id": ROOT,
                "$ref": "one.json",
                "$defs": {
                    "one": {
                        "$id": "one.json",
                        "$ref": "list.json",
                        "$defs": {"x": {"$dynamicAnchor": "n", **NULL}},
                    },
                    "list": {
                        "$id": "list.json",
                        "items": {"$dynamicRef": "#n"},
                        "$defs": {"x": {"$dynamicAnchor": "n", **INTEGER}},
                    },
                },
            },
            r"keyword \$dynamicRef at \$\[\] .* depends on the way",
        ),
        (
            {
                "$schema": DRAFT_2019,
                "$id": ROOT,
                "$ref": "a.json",
                "$defs": {
                    "a": {"$id": "a.json", "$recursiveAnchor": True, "$ref": "b.json"},
                    "b": {"$id": "b.json", "$recursiveAnchor": True, "items": {"$recursiveRef": "#"}},
                },
            },
            r"keyword \$recursiveRef at \$\[\] .* depends on the way",
        ),
    ],
)
def test_what_leads_nowhere_is_refused(schema: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConstraintError, match=cause):
        schema_language(schema)
