"""The objects that a request is made of."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, model_validator

from ..documents import Document, DocumentError

# Templates and schemas are gone through by recursion. Nobody's are half as deep.
MAX_DEPTH = 100


class Object(Document):
    """What is null is as if left out, and nothing is there that isn't known."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: item for name, item in value.items() if item is not None}


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
