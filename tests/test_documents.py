"""JSON from outside is read whole, or refused with what is wrong with it."""

from __future__ import annotations

import pytest
from pydantic import Field, model_validator

from llm_diffusiongemma.documents import (
    MAX_DOCUMENT_BYTES,
    Document,
    DocumentError,
    conform,
    parse_object,
    refuse_unless,
)


class Example(Document):
    name: str
    size: int = Field(default=1, ge=0)
    share: float = 0.5
    parts: dict[str, list[int]] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no JSON from line 1, column 1 on"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b'{"a": "\xff"}', "it is no UTF-8 from byte 8 on"),
        (b"{\n{", "it is no JSON from line 2, column 1 on"),
        (b'{"a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "digits"),
        (b" " * (MAX_DOCUMENT_BYTES + 1), "268,435,457 bytes"),
    ],
)
def test_no_object(content: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        parse_object(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{}", "it has no name"),
        (b'{"name": 3}', "name is 3: it has to be a text"),
        (b'{"name": "a", "size": "7"}', "size is '7': it has to be a whole number"),
        (b'{"name": "a", "size": true}', "size is true"),
        (b'{"name": "a", "size": 1.0}', "size is 1.0"),
        (b'{"name": "a", "size": -1}', "size is -1: it has to be 0 or more"),
        (b'{"name": "a", "size": 1e400}', "size is inf"),
        (b'{"name": "a", "share": 1e400}', "share is inf: it has to be a finite number"),
        (b'{"name": "a", "share": NaN}', "share is nan"),
        (b'{"name": "a", "parts": {"\\u001b[2J": [1, null]}}', r"parts\.\\x1b\[2J\.1 is null"),
    ],
)
def test_an_object_with_other_fields(content: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        conform(Example, parse_object(content))


def test_what_is_used() -> None:
    assert conform(Example, parse_object(b'{"name": "a", "more": [], "share": 1}')) == Example(name="a", share=1.0)


class Falling(Document):
    low: int
    high: int

    @model_validator(mode="after")
    def _falls(self) -> Falling:
        refuse_unless(self.low < self.high, "low must be below high")
        return self


class Pair(Document):
    first: Falling


def test_a_rule_between_fields() -> None:
    with pytest.raises(DocumentError, match=r"^in first, low must be below high$"):
        conform(Pair, {"first": {"low": 2, "high": 1}})
    with pytest.raises(DocumentError, match=r"^low must be below high$"):
        conform(Falling, {"low": 2, "high": 1})
    with pytest.raises(DocumentError, match=r"^first is 3: it has to be an object$"):
        conform(Pair, {"first": 3})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "c stands twice in an object"),
        (b'{"a": [NaN]}', "NaN is no number in JSON"),
        (b'{"a": -Infinity}', "-Infinity is no number in JSON"),
    ],
)
def test_what_not_everybody_reads_in_the_same_way(content: bytes, reason: str) -> None:
    parse_object(content)
    with pytest.raises(DocumentError, match=reason):
        parse_object(content, strict=True)


@pytest.mark.parametrize(
    ("value", "at", "where"),
    [({"name": 5}, "", "name"), ({}, "parts.3", "parts.3.name"), (5, "parts.3", "parts.3")],
)
def test_an_error_names_its_field(value: object, at: str, where: str) -> None:
    with pytest.raises(DocumentError, match=where) as caught:
        conform(Example, value, at)
    assert caught.value.where == where
