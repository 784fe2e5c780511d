"""JSON from outside, of a checkpoint or a hub: read at the door, and held against what is used of it.

What is used of a document is written down as a subclass of `Document`, whose fields are the schema.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, LiteralString, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .wording import quoted

# Gemma's tokenizer.json, the largest there is, has 33 MB.
MAX_DOCUMENT_BYTES = 1 << 28
SHOWN_VALUE_CHARACTERS = 60

# How pydantic begins what a validator has said.
RULE = "Value error, "

# The type of an error whose message goes on behind the field's name.
PREDICATE: LiteralString = "predicate"

# What pydantic expects, by its name for what isn't so.
EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "none_required": "null",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "at least {min_length} long",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
}


class DocumentError(ValueError):
    """A text is no JSON object, or not one with the fields that are used. Its message is part of a sentence."""

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(message)
        self.where = where
        """The field, `messages.0.role`, if it is one."""


class Document(BaseModel):
    """What is used of a JSON object. Numbers are not read out of texts, nor truths out of numbers."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


AnyDocument = TypeVar("AnyDocument", bound=BaseModel)


def parse_object(content: bytes, *, strict: bool = False) -> dict[str, Any]:
    """The JSON object in UTF-8. Raises `DocumentError`.

    `strict` refuses what Python reads and not everybody does, or not in the same way: a name twice in an object,
    and NaN.
    """
    if len(content) > MAX_DOCUMENT_BYTES:
        raise DocumentError(f"it has {len(content):,} bytes, more than any such file")
    try:
        hooks: dict[str, Any] = {"object_pairs_hook": _of_pairs, "parse_constant": _constant} if strict else {}
        value = json.loads(content.decode("utf-8"), **hooks)
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except DocumentError:
        raise
    except json.JSONDecodeError as error:
        raise DocumentError(f"it is no JSON from line {error.lineno}, column {error.colno} on") from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is no UTF-8 from byte {error.start + 1:,} on") from error
    except ValueError as error:
        raise DocumentError("it has a number of thousands of digits") from error
    if not isinstance(value, dict):
        raise DocumentError("it is no JSON object")
    return value


def _of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise DocumentError(f"{quoted(counts.most_common(1)[0][0])} stands twice in an object")
    return value


def _constant(name: str) -> None:
    raise DocumentError(f"{name} is no number in JSON")


def conform(schema: type[AnyDocument], value: Any, at: str = "") -> AnyDocument:
    """What is used of an object, which may itself stand `at` some field of a larger one.

    Raises `DocumentError` that names the first field that isn't as it has to be.
    """
    try:
        return schema.model_validate(value)
    except RecursionError:
        raise DocumentError("it is nested too deeply", at) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = quoted(".".join(map(str, filter(None, (at, *map(str, first["loc"]))))))
        if first["type"] == "missing":
            raise DocumentError(f"it has no {where}", where) from error
        if first["type"] == PREDICATE:
            raise DocumentError(f"{where} {first['msg']}", where) from error
        message = first["msg"].removeprefix(RULE)
        # Of an object as a whole, not of a field that has to be something else.
        is_of_all = not first["loc"] and first["type"] not in EXPECTED
        if isinstance(first["input"], dict) and (first["msg"].startswith(RULE) or is_of_all):
            raise DocumentError(f"in {where}, {message}" if where else message, where) from error
        reason = message[:1].lower() + message[1:]
        if first["type"] == "extra_forbidden":
            reason = "nothing of that name is known here"
        elif first["type"] in EXPECTED:
            reason = f"it has to be {EXPECTED[first['type']].format_map(first.get('ctx', {}))}"
        raise DocumentError(
            f"{where} is {quoted(_shown(first['input']), SHOWN_VALUE_CHARACTERS)}: {reason}", where
        ) from error


def _shown(value: Any) -> str:
    """Who has written JSON needn't know what Python makes of it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def refuse_unless(condition: bool, rule: str) -> None:
    """For the validators of a schema: what breaks the rule is no value of it."""
    if not condition:
        raise ValueError(rule)
