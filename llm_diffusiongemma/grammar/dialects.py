"""By which draft a schema is read, and whether a document is valid by it.

jsonschema is the judge of every finished reply. What it would stumble over there is found here, before the model
runs: `read_schema` looks at each schema that a document can meet, and refuses by name what the judge can't
resolve, can't evaluate, or would go round in for ever. What is left refers to nothing but itself, so the judge
knows no `$id`, no `$schema` and no other document.
"""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from typing import Any
from urllib.parse import unquote

import attrs
import jsonschema
import referencing

from ..errors import ConstraintError
from ..wording import quoted
from .pattern import is_found, may_backtrack

Schema = dict[str, Any] | bool
Part = dict[str, Any]

MAX_SCHEMA_LENGTH = 200_000

# Objects in a schema, and values of one enum: each value is held against the whole of them.
MAX_SCHEMA_OBJECTS = 10_000
MAX_VALUES = 2000

_DRAFTS = {
    "draft-04": jsonschema.Draft4Validator,
    "draft-06": jsonschema.Draft6Validator,
    "draft-07": jsonschema.Draft7Validator,
    "draft/2019-09": jsonschema.Draft201909Validator,
    "draft/2020-12": jsonschema.Draft202012Validator,
}
_DEFAULT_DRAFT = "draft/2020-12"
# OpenAPI 3.1 adds annotations only.
_OPENAPI = "https://spec.openapis.org/oas/3.1/dialect/base"

# A hyper-schema adds annotations only.
_SPELLINGS_OF_SCHEMA = re.compile(
    r"(?:https?://)?(?:www\.)?json-schema\.org/(draft-\d\d|draft/\d{4}-\d\d)/(?:hyper-)?schema/?#?/?",
    re.IGNORECASE,
)

# Keywords whose value is a schema, a list of schemas, or schemas by name: those that look at the same value, and
# those that look at what is inside it.
_HERE = ("not", "if", "then", "else", "allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies")
_INSIDE = {
    "items": "[]",
    "prefixItems": "[]",
    "additionalItems": "[]",
    "unevaluatedItems": "[]",
    "contains": "[]",
    "properties": "",
    "patternProperties": ".*",
    "additionalProperties": ".*",
    "unevaluatedProperties": ".*",
    "propertyNames": ".*",
}
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "dependencies")


def read_schema(schema: Any) -> Any:
    """A jsonschema validator of a copy of the schema, of its own draft, which can judge any document.

    It fetches nothing, its patterns end, and formats are annotations to it. Raises `ConstraintError` for what is
    no valid schema, is of an unknown draft, or can't be judged by.
    """
    try:
        schema = _json_copy(schema)
        draft = _DEFAULT_DRAFT
        if isinstance(schema, dict) and "$schema" in schema:
            draft = _draft(schema["$schema"])
        dialect = _DRAFTS[draft]
        _check_valid(dialect, schema)
        _Survey(schema, draft).check()
    except RecursionError:
        raise ConstraintError("The schema is nested too deeply. Make it flatter.") from None
    return _judge(dialect)(schema, registry=referencing.Registry())


def _json_copy(schema: Any) -> Schema:
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConstraintError(f"The schema is not JSON: {error}.") from None
    if not isinstance(schema, dict | bool):
        raise ConstraintError(f"A schema is a JSON object, and this is {text[:40]}.")
    if len(text) > MAX_SCHEMA_LENGTH:
        raise ConstraintError(
            f"The schema has {len(text):,} characters; at most {MAX_SCHEMA_LENGTH:,} can be worked on. "
            "Take out what the reply doesn't need."
        )
    if text.count("{") > MAX_SCHEMA_OBJECTS:
        raise ConstraintError(
            f"The schema has more than {MAX_SCHEMA_OBJECTS:,} objects in it. Take out what the reply doesn't need."
        )
    copied: Schema = json.loads(text)
    for node in objects(copied):
        values = node.get("enum")
        if isinstance(values, list) and len(values) > MAX_VALUES:
            raise ConstraintError(
                f"An enum in the schema has {len(values):,} values; at most {MAX_VALUES:,} can be worked on."
            )
    return copied


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects inside of a JSON value."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def references(value: Any) -> frozenset[str]:
    """What the $refs inside of a JSON value say, and what only looks like them."""
    found = (each.get("$ref") for each in objects(value))
    return frozenset(reference for reference in found if isinstance(reference, str))


def _draft(name: Any) -> str:
    """The draft that a $schema names. Raises `ConstraintError`."""
    if not isinstance(name, str):
        raise ConstraintError("The schema is invalid: its $schema is not a text.")
    if name.strip() == _OPENAPI:
        return _DEFAULT_DRAFT
    spelling = _SPELLINGS_OF_SCHEMA.fullmatch(name.strip())
    draft = spelling[1].lower() if spelling else None
    if draft == "draft-03":
        raise ConstraintError("The schema is of draft 3, whose keywords mean other things. Use a later draft.")
    if draft not in _DRAFTS:
        raise ConstraintError(
            f"The $schema {name[:80]!r} is none that can be read: those of draft 4, 6, 7, 2019-09 and 2020-12 are."
            " Name the one whose keywords the schema uses, or leave $schema out for 2020-12."
        )
    return draft


def _check_valid(dialect: Any, schema: Schema, which: str = "The schema") -> None:
    try:
        with warnings.catch_warnings():
            # Of patterns whose meaning Python will change.
            warnings.simplefilter("ignore")
            dialect.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConstraintError(
            f"{which} is invalid at {quoted(error.json_path)}: {quoted(error.message, 200)}."
        ) from None


def refuse(keyword: str, reason: str, place: str, way_out: str = "Leave it out") -> ConstraintError:
    """The error that names a keyword; `place` is where in a document it applies."""
    return ConstraintError(f"The keyword {keyword} at {quoted(place)} can't be guaranteed: {reason}. {way_out}.")


def resolve(root: Schema, reference: Any) -> list[Any]:
    """What a $ref passes on its way from the root: the last one is the schema that it leads to.

    Raises `ConstraintError` if there is none.
    """
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        raise ConstraintError(f"The $ref {reference!r} doesn't lead to a place in the schema itself (#/...).")
    way: list[Any] = [root]
    for step in _steps(reference):
        node = way[-1]
        try:
            way.append(node[int(step)] if isinstance(node, list) and _INDEX.fullmatch(step) else node[step])
        except (LookupError, TypeError):
            raise ConstraintError(
                f"The $ref {reference!r} leads nowhere in the schema. Put what it names under $defs."
            ) from None
    if not isinstance(way[-1], dict | bool):
        raise ConstraintError(f"The $ref {reference!r} leads to something that is no schema.")
    return way


_INDEX = re.compile("0|[1-9][0-9]{0,8}")


def _steps(reference: str) -> list[str]:
    steps = unquote(reference).split("/")[1:]
    return [step.replace("~1", "/").replace("~0", "~") for step in steps]


def refs_stand_alone(dialect: Any) -> bool:
    """Whether the draft ignores what stands beside a $ref, as it was up to draft 7."""
    return "unevaluatedItems" not in dialect.VALIDATORS


class _Survey:
    """All schemas that a document can meet in one that is valid by its draft's meta-schema."""

    def __init__(self, root: Schema, draft: str) -> None:
        self.root = root
        self.draft = draft
        self.dialect = _DRAFTS[draft]
        self.obeyed = {*self.dialect.VALIDATORS, *(("then", "else") if "if" in self.dialect.VALIDATORS else ())}
        self.id = "id" if draft == "draft-04" else "$id"
        self.checked: set[str] = set()
        # By identity: which schemas look at the same value as another, and through which $ref.
        self.here: dict[int, list[tuple[int, str]]] = {}
        self.places: dict[int, str] = {}
        # Keywords that the judge can't take together, and the first place of each.
        self.met: dict[str, str] = {}

    def check(self) -> None:
        """Raises `ConstraintError` for what a document can't be held against."""
        seen: set[tuple[int, bool]] = set()
        # Schema, place, and whether a $ref means something else there, for a nested $id has moved its base.
        pending: list[tuple[Schema, str, bool]] = [(self.root, "$", False)]
        while pending:
            schema, place, moved = pending.pop()
            if isinstance(schema, bool):
                continue
            moved = moved or self._moves(schema)
            if (id(schema), moved) in seen:
                continue
            seen.add((id(schema), moved))
            self.places.setdefault(id(schema), place)
            pending += self._look(schema, place, moved)
        done: set[int] = set()
        for start in self.here:
            self._check_end(start, "", frozenset(), done)
        for keyword, other, reason in (
            ("unevaluatedItems", "items", "jsonschema can't read it where items is true or false"),
            ("unevaluatedProperties", "patternProperties", "a pattern of patternProperties may take for ever"),
        ):
            if keyword in self.met and other in self.met:
                raise refuse(keyword, reason, self.met[keyword])

    def _moves(self, schema: Part) -> bool:
        own = schema.get(self.id)
        if schema is self.root or not isinstance(own, str) or own.startswith("#"):
            return False
        return own != "" and not ("$ref" in schema and refs_stand_alone(self.dialect))

    def _look(self, schema: Part, place: str, moved: bool) -> list[tuple[Schema, str, bool]]:
        """Check one schema by itself, and say which ones it leads to."""
        if schema is not self.root and "$schema" in schema and _draft(schema["$schema"]) != self.draft:
            raise refuse("$schema", "it is of another draft than the schema around it", place)
        for keyword in ("$dynamicRef", "$recursiveRef"):
            if keyword in schema and keyword in self.obeyed:
                raise refuse(keyword, "where it leads depends on the way there", place, "Use $ref")
        here: list[tuple[Schema, str]] = []
        found: list[tuple[Schema, str, bool]] = []
        if "$ref" in schema:
            reference = schema["$ref"]
            if moved:
                raise refuse(self.id, "inside of a schema it changes what a $ref refers to", place)
            *way, target = resolve(self.root, reference)
            self._check_target(target, reference)
            here.append((target, reference))
            found.append((target, place, any(isinstance(node, dict) and self._moves(node) for node in way)))
        if "$ref" not in schema or not refs_stand_alone(self.dialect):
            known = {keyword: value for keyword, value in schema.items() if keyword in self.obeyed}
            self._check_patterns(known, place)
            for keyword in known.keys() & {"unevaluatedItems", "unevaluatedProperties"}:
                self.met.setdefault(keyword, place)
            if isinstance(known.get("items"), bool) and "additionalItems" in self.obeyed:
                self.met.setdefault("items", place)
            for keyword in _HERE:
                subschemas = [subschema for _, subschema in _subschemas(known, keyword)]
                here += [(subschema, "") for subschema in subschemas]
                found += [(subschema, place, moved) for subschema in subschemas]
            for keyword, step in _INSIDE.items():
                for name, subschema in _subschemas(known, keyword):
                    found.append((subschema, place + (step or f".{name}"), moved))
        self.here[id(schema)] = [(id(subschema), reference) for subschema, reference in here]
        return found

    def _check_target(self, target: Schema, reference: str) -> None:
        """The meta-schema looks at the usual places only."""
        steps = _steps(reference)
        definitions = ("definitions",) if refs_stand_alone(self.dialect) else ("definitions", "$defs")
        if reference not in self.checked and not (len(steps) == 2 and steps[0] in definitions):
            self.checked.add(reference)
            _check_valid(self.dialect, target, f"What the $ref {reference!r} leads to")

    def _check_patterns(self, schema: Part, place: str) -> None:
        for pattern in schema.get("patternProperties", {}):
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ConstraintError(
                    f"The schema is invalid at {place}: {pattern[:80]!r} is no regular expression: {error}."
                ) from None
            if not pattern:
                raise refuse("patternProperties", "one of its patterns is empty", place, "Write ^ for any name")
            if may_backtrack(pattern):
                self.met.setdefault("patternProperties", place)

    def _check_end(self, schema: int, reference: str, opened: frozenset[int], done: set[int]) -> None:
        """Raises if a schema leads back to itself at the same value; `reference` is the last $ref on the way."""
        if schema in opened:
            raise ConstraintError(
                f"The schema's recursion has no end: the $ref {reference!r} at {self.places[schema]} leads back "
                "to itself without going into a property or an item."
            )
        if schema not in done:
            for following, name in self.here.get(schema, ()):
                self._check_end(following, name or reference, opened | {schema}, done)
            done.add(schema)


def _subschemas(schema: Part, keyword: str) -> Iterable[tuple[str, Schema]]:
    """The schemas under a keyword, by name where they have one."""
    value = schema.get(keyword)
    named: Sequence[tuple[str, Any]] = [("", value)]
    if isinstance(value, list):
        named = [("", each) for each in value]
    elif isinstance(value, dict) and keyword in _BY_NAME:
        named = list(value.items())
    return [(name, each) for name, each in named if isinstance(each, dict | bool)]


@cache
def _judge(dialect: Any) -> Any:
    """jsonschema's class for a draft, but one that ends and never raises."""
    judge = jsonschema.validators.create(
        meta_schema=dialect.META_SCHEMA,
        validators={
            **dialect.VALIDATORS,
            "pattern": _pattern,
            "multipleOf": _multiple_of,
            "patternProperties": _pattern_properties,
            "additionalProperties": _additional_properties,
            **({"additionalItems": _additional_items} if "additionalItems" in dialect.VALIDATORS else {}),
        },
        type_checker=dialect.TYPE_CHECKER,
        id_of=lambda schema: None,
        applicable_validators=_ref_alone if refs_stand_alone(dialect) else dict.items,
    )
    # Its own would take the stock class of a draft wherever it meets a $schema.
    judge.evolve = attrs.evolve
    return judge


def _ref_alone(schema: Part) -> Iterable[tuple[str, Any]]:
    return [("$ref", schema["$ref"])] if "$ref" in schema else schema.items()


Errors = Iterator[jsonschema.ValidationError]


def _pattern(validator: Any, pattern: str, instance: Any, schema: Part) -> Errors:
    if isinstance(instance, str) and not is_found(pattern, instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _multiple_of(validator: Any, factor: float, instance: Any, schema: Part) -> Errors:
    try:
        yield from jsonschema.Draft202012Validator.VALIDATORS["multipleOf"](validator, factor, instance, schema)
    except OverflowError:  # an integer that no double holds
        if Fraction(instance) % Fraction(str(factor)):
            yield jsonschema.ValidationError(f"{instance!r} is not a multiple of {factor!r}")


def _pattern_properties(validator: Any, patterns: dict[str, Schema], instance: Any, schema: Part) -> Errors:
    if isinstance(instance, dict):
        for (pattern, subschema), (name, value) in itertools.product(patterns.items(), instance.items()):
            if is_found(pattern, name):
                yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, others: Schema, instance: Any, schema: Part) -> Errors:
    if isinstance(instance, dict):
        patterns = schema.get("patternProperties", {})
        for name, value in instance.items():
            if name not in schema.get("properties", {}) and not any(is_found(each, name) for each in patterns):
                yield from validator.descend(value, others, path=name)


def _additional_items(validator: Any, others: Schema, instance: Any, schema: Part) -> Errors:
    first = schema.get("items")
    if isinstance(instance, list) and isinstance(first, list):
        for index, item in enumerate(instance[len(first) :], start=len(first)):
            yield from validator.descend(item, others, path=index)
