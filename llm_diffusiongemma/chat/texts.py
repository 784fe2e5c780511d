"""The strings in a value of lists, dicts and texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def is_text(value: Any) -> bool:
    """Whether all strings in a value can be encoded: a lone half of a surrogate pair can't."""
    try:
        "".join(texts_of(value)).encode()
    except UnicodeEncodeError:
        return False
    return True


def whole_text(text: str) -> str:
    """With U+FFFD for each half of a surrogate pair that is alone. Two halves that fit are one character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def texts_of(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts_of(key)
            yield from texts_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_of(item)
