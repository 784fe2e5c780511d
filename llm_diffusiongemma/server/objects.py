"""The objects that a request is made of."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, model_validator

from ..documents import Document, DocumentError

# Templates and schemas are gone through by recursion. Nobody's are half as deep.
MAX_DEPTH = 100
# Of values that follow others, and of those in texts: twice what fits the context if it holds nothing else.
MAX_COMMAS = 300_000


class Object(Document):
    """What is null is as if left out, and nothing is there that isn't known."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        given = {name: item for name, item in value.items() if name in known and item is not None}
        # One is refused just as a million are, without as many errors.
        unknown = next((name for name in value if name not in known and value[name] is not None), None)
        return given if unknown is None else {**given, unknown: value[unknown]}


def check_number(content: bytes) -> None:
    """Raises `DocumentError` if JSON holds more values than can be meant, which need not be read for that."""
    if content.count(b",") > MAX_COMMAS:
        raise DocumentError(f"it is made of more than {MAX_COMMAS:,} parts")


def check_depth(value: Any) -> None:
    """Raises `DocumentError` if objects and lists are nested too deeply in one another."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for each in level for child in _children(each) if isinstance(child, (dict, list))]
        if not level:
            return
    raise DocumentError(f"it is nested more than {MAX_DEPTH} levels deep")


def _children(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
