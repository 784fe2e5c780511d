"""By which draft a schema is read, and whether a document is valid by it.

jsonschema is the judge of every finished reply. What it would stumble over there is found here, before the model
runs: `read_schema` looks at each schema that a document can meet, and refuses by name what the judge can't
resolve, can't evaluate, or would go round in for ever. What is left refers to nothing but itself, so the judge
knows no `$id`, no `$schema` and no other document.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache, cached_property
from typing import Any
from urllib.parse import urljoin

import attrs
import jsonschema
import jsonschema_specifications
import referencing

from ..errors import ConstraintError
from ..wording import quoted
from .habits import check_no_json_was_cut, check_says_something, read_habits, unwrapped
from .pattern import check_pattern, is_found
from .references import References, parts_of, resolve, steps, subschemas

Schema = dict[str, Any] | bool
Part = dict[str, Any]
Errors = Iterator[jsonschema.ValidationError]

MAX_SCHEMA_LENGTH = 1_000_000

# Objects in a schema, and values of one enum. Each costs 0.1 ms before the first state.
MAX_SCHEMA_OBJECTS = 10_000
MAX_VALUES = 20_000

# Characters of a wrong value that an error shows.
_MOST_SHOWN = 60
_TYPES = "The types are array, boolean, integer, null, number, object and string"

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


# What drafts that know it read differently; some of it only where the value is of a type.
_READ_BY_DRAFT = ("minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties")
_READ_BY_VALUE = {"exclusiveMinimum": bool, "exclusiveMaximum": bool, "items": list}


def read_schema(schema: Any) -> Any:
    """A jsonschema validator of a copy of the schema, of its own draft, which can judge any document.

    It fetches nothing, its patterns end, and formats are annotations to it. Raises `ConstraintError` for what is
    no valid schema, is of an unknown draft, or can't be judged by.
    """
    try:
        given = _json_copy(schema)
        schema = unwrapped(given)
        draft = _DEFAULT_DRAFT
        if isinstance(schema, dict):
            check_says_something(schema, wrapped=schema is not given)
            check_no_json_was_cut(schema)
            if "$schema" in schema:
                draft = _draft(schema["$schema"])
            else:
                read_habits(schema)
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
    for node in list(objects(copied)):
        values = node.get("enum")
        if isinstance(values, list) and len(values) > MAX_VALUES:
            raise ConstraintError(
                f"An enum in the schema has {len(values):,} values; at most {MAX_VALUES:,} can be worked on."
            )
        if isinstance(values, list):
            node["enum"] = Values(values)
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
    error = jsonschema.exceptions.best_match(_checker(dialect).iter_errors(schema))
    if error is not None:
        reason = str(error.cause or _fault(error)).rstrip(".")
        raise ConstraintError(f"{which} is invalid at {quoted(error.json_path)}: {quoted(reason, 200)}.")


def _fault(error: jsonschema.ValidationError) -> str:
    """What is wrong with a schema, to who wrote it as JSON."""
    path = [each for each in error.absolute_path if isinstance(each, str)]
    keyword = path[-1] if path else None
    value = json.dumps(error.instance, ensure_ascii=False)
    if len(value) > _MOST_SHOWN:
        value = f"{value[:_MOST_SHOWN]}..."
    if keyword == "type" and error.validator in ("enum", "anyOf"):
        return f"{value} is no type. {_TYPES}"
    if keyword == "required" and isinstance(error.instance, bool) and error.validator_value == "array":
        return f"{value} is no list of names. It belongs beside properties and names those that have to be there"
    if error.validator == "type":
        if not isinstance(error.validator_value, str):
            return f"{value} is no schema"
        article = "an" if error.validator_value[0] in "aio" else "a"
        return f"{value} is not {article} {error.validator_value}"
    return str(error.message)


@cache
def _formats(dialect: Any) -> jsonschema.FormatChecker:
    """What the meta-schema of a draft asks of texts, but that a pattern is ECMA 262's, not Python's."""
    checker = jsonschema.FormatChecker(formats=())
    checker.checkers = {**dialect.FORMAT_CHECKER.checkers, "regex": (_is_pattern, ConstraintError)}
    return checker


def _is_pattern(value: Any) -> bool:
    if isinstance(value, str):
        check_pattern(value)
    return True


@cache
def _checker(dialect: Any) -> Any:
    """A validator of schemas of a draft, for large ones: in one pass, and enums are not compared pair by pair."""
    references = dict.fromkeys(("$ref", "$dynamicRef", "$recursiveRef"), _within)
    checker = _self_contained(dialect, {"uniqueItems": _unique_items, **references})
    return checker(_flat(dialect.META_SCHEMA), format_checker=_formats(dialect))


def _flat(meta_schema: Part) -> Part:
    """A meta-schema with its vocabularies in it: as allOf each of them would go through the whole schema."""
    parts = [
        jsonschema_specifications.REGISTRY.contents(urljoin(meta_schema["$id"], each["$ref"]))
        for each in meta_schema.get("allOf", ())
    ]
    merged = {keyword: value for keyword, value in meta_schema.items() if keyword != "allOf"}
    for keyword in ("properties", "$defs"):
        for part in parts:
            merged[keyword] = {**merged.get(keyword, {}), **part.get(keyword, {})}
    return merged


def _within(validator: Any, reference: str, instance: Any, schema: Part) -> Errors:
    """Vocabularies are in one, and #meta is its top."""
    fragment = reference.partition("#")[2]
    yield from validator._validate_reference(ref=f"#{fragment.removeprefix('meta')}", instance=instance)


def _unique_items(validator: Any, unique: bool, instance: Any, schema: Part) -> Errors:
    if unique and isinstance(instance, list) and len(set(map(_key, instance))) < len(instance):
        yield jsonschema.ValidationError(f"{quoted(instance, 100)} has non-unique elements")


def _self_contained(dialect: Any, validators: dict[str, Any]) -> Any:
    """jsonschema's class for a draft with other validators, in which a $ref never leaves the schema."""
    found = jsonschema.validators.create(
        meta_schema=dialect.META_SCHEMA,
        validators={**dialect.VALIDATORS, **validators},
        type_checker=dialect.TYPE_CHECKER,
        id_of=lambda schema: None,
        applicable_validators=_ref_alone if refs_stand_alone(dialect) else dict.items,
    )
    # Its own would take the stock class of a draft wherever it meets a $schema.
    found.evolve = attrs.evolve
    return found


def _key(value: Any) -> Any:
    """What is equal for equal JSON values only, and can be looked up."""
    if isinstance(value, dict):
        return "object", frozenset((name, _key(each)) for name, each in value.items())
    if isinstance(value, list):
        return "array", tuple(map(_key, value))
    return (bool, value) if isinstance(value, bool) else value


class Values(list[Any]):
    """The values of an enum, which can be looked up."""

    @cached_property
    def keys(self) -> frozenset[Any]:
        return frozenset(map(_key, self))


def refuse(keyword: str, reason: str, place: str, way_out: str = "Leave it out") -> ConstraintError:
    """The error that names a keyword; `place` is where in a document it applies."""
    return ConstraintError(f"The keyword {keyword} at {quoted(place)} can't be guaranteed: {reason}. {way_out}.")


def refs_stand_alone(dialect: Any) -> bool:
    """Whether the draft ignores what stands beside a $ref, as it was up to draft 7."""
    return "unevaluatedItems" not in dialect.VALIDATORS


def _obeyed(dialect: Any) -> set[str]:
    return {*dialect.VALIDATORS, *(("then", "else") if "if" in dialect.VALIDATORS else ())}


class _Survey:
    """All schemas that a document can meet in one that is valid by its draft's meta-schema."""

    def __init__(self, root: Schema, draft: str) -> None:
        self.root = root
        self.draft = draft
        self.dialect = _DRAFTS[draft]
        self.obeyed = _obeyed(self.dialect)
        id_keyword = "id" if draft == "draft-04" else "$id"
        self.references = References(root, id_keyword, refs_stand_alone(self.dialect), self.obeyed)
        self.checked: set[str] = set()
        # Schemas that another draft reads alike, by identity.
        self.alike: set[tuple[int, str]] = set()
        # By identity: which schemas look at the same value as another, and through which $ref.
        self.here: dict[int, list[tuple[int, str]]] = {}
        self.places: dict[int, str] = {}
        # Keywords that the judge can't take together, and the first place of each.
        self.met: dict[str, str] = {}

    def check(self) -> None:
        """Makes every reference that a document can meet a plain pointer.

        Raises `ConstraintError` for what a document can't be held against.
        """
        seen: set[int] = set()
        pending: list[tuple[Schema, str]] = [(self.root, "$")]
        while pending:
            schema, place = pending.pop()
            if isinstance(schema, bool) or id(schema) in seen:
                continue
            seen.add(id(schema))
            self.places[id(schema)] = place
            pending += self._look(schema, place)
        done: set[int] = set()
        for start in self.here:
            self._check_end(start, "", frozenset(), done)
        if "unevaluatedItems" in self.met and "items" in self.met:
            reason = "jsonschema can't read it where items is true or false"
            raise refuse("unevaluatedItems", reason, self.met["unevaluatedItems"])

    def _look(self, schema: Part, place: str) -> list[tuple[Schema, str]]:
        """Check one schema by itself, and say which ones it leads to."""
        if schema is not self.root and "$schema" in schema:
            self._check_alike(schema, place)
        here: list[tuple[Schema, str]] = []
        found: list[tuple[Schema, str]] = []
        reference = self.references.lead(schema, place)
        if reference is not None:
            target = resolve(self.root, reference)[-1]
            self._check_target(target, reference)
            here.append((target, reference))
            found.append((target, place))
        if reference is None or not refs_stand_alone(self.dialect):
            known = {keyword: value for keyword, value in schema.items() if keyword in self.obeyed}
            self._check_patterns(known, place)
            if "unevaluatedItems" in known:
                self.met.setdefault("unevaluatedItems", place)
            if isinstance(known.get("items"), bool) and "additionalItems" in self.obeyed:
                self.met.setdefault("items", place)
            for keyword in filter(known.__contains__, _HERE):
                below = [subschema for _, subschema in subschemas(known, keyword)]
                here += [(subschema, "") for subschema in below]
                found += [(subschema, place) for subschema in below]
            for keyword in filter(known.__contains__, _INSIDE):
                for name, subschema in subschemas(known, keyword):
                    found.append((subschema, place + (_INSIDE[keyword] or f".{name}")))
        self.here[id(schema)] = [(id(subschema), reference) for subschema, reference in here]
        return found

    def _check_alike(self, schema: Part, place: str) -> None:
        """A part of another draft is read as the schema around it, if that means the same."""
        draft = _draft(schema["$schema"])
        if draft == self.draft:
            return
        other = _DRAFTS[draft]
        differing = {*_READ_BY_DRAFT, *(self.obeyed ^ _obeyed(other))}
        beside_refs = self.obeyed if refs_stand_alone(self.dialect) != refs_stand_alone(other) else set()
        pending = [schema]
        while pending:
            part = pending.pop()
            if (id(part), draft) in self.alike:
                continue
            self.alike.add((id(part), draft))
            used = part.keys() & differing
            used |= {keyword for keyword, kind in _READ_BY_VALUE.items() if isinstance(part.get(keyword), kind)}
            if "$ref" in part:
                used |= part.keys() & beside_refs - {"$ref"}
            if used:
                reason = f"it is of another draft than the schema around it, and {min(used)} differs between them"
                raise refuse("$schema", reason, place)
            pending += [each for _, each in parts_of(part)]

    def _check_target(self, target: Schema, reference: str) -> None:
        """The meta-schema looks at the usual places only."""
        way = steps(reference)
        definitions = ("definitions",) if refs_stand_alone(self.dialect) else ("definitions", "$defs")
        if reference not in self.checked and not (len(way) == 2 and way[0] in definitions):
            self.checked.add(reference)
            _check_valid(self.dialect, target, f"What the $ref {reference!r} leads to")

    def _check_patterns(self, schema: Part, place: str) -> None:
        for pattern in schema.get("patternProperties", {}):
            try:
                check_pattern(pattern)
            except ConstraintError as error:
                raise ConstraintError(f"The schema is invalid at {place}: {error}") from None

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


@cache
def _judge(dialect: Any) -> Any:
    """jsonschema's class for a draft, but one that ends and never raises."""
    return _self_contained(
        dialect,
        {
            "enum": _enum,
            "pattern": _pattern,
            "multipleOf": _multiple_of,
            "patternProperties": _pattern_properties,
            "additionalProperties": _additional_properties,
            **{name: own for name, own in _WHERE_KNOWN.items() if name in dialect.VALIDATORS},
        },
    )


def _ref_alone(schema: Part) -> Iterable[tuple[str, Any]]:
    return [("$ref", schema["$ref"])] if "$ref" in schema else schema.items()


def _enum(validator: Any, values: list[Any], instance: Any, schema: Part) -> Errors:
    if _key(instance) not in (values if isinstance(values, Values) else Values(values)).keys:
        yield jsonschema.ValidationError(f"{quoted(instance, 100)} is none of the values")


def _pattern(validator: Any, pattern: str, instance: Any, schema: Part) -> Errors:
    if isinstance(instance, str) and not is_found(pattern, instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _multiple_of(validator: Any, factor: float, instance: Any, schema: Part) -> Errors:
    # In decimals, by the texts of both: in doubles 19.99 is no multiple of 0.01. The infinities are of nothing.
    if validator.is_type(instance, "number") and (
        instance in (math.inf, -math.inf) or Fraction(str(instance)) % Fraction(str(factor))
    ):
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


def _unevaluated_properties(validator: Any, others: Schema, instance: Any, schema: Part) -> Errors:
    if isinstance(instance, dict):
        evaluated = _evaluated(
            validator, instance, {k: v for k, v in schema.items() if k != "unevaluatedProperties"}
        )
        for name, value in instance.items():
            if name not in evaluated:
                yield from validator.descend(value, others, path=name)


def _evaluated(validator: Any, instance: dict[str, Any], schema: Schema) -> set[str]:
    """The properties that a schema looks at. jsonschema's own would search for patterns as Python has them."""
    if isinstance(schema, bool):
        return set()
    patterns = schema.get("patternProperties", {})
    found = {
        name
        for name in instance
        if name in schema.get("properties", {}) or any(is_found(pattern, name) for pattern in patterns)
    }
    for keyword in ("additionalProperties", "unevaluatedProperties"):
        others = schema.get(keyword, False)
        if others is True:
            found |= instance.keys()
        # As jsonschema has it, which overlooks schemas in draft 2019-09.
        elif "$recursiveRef" not in validator.VALIDATORS:
            found |= {name for name, value in instance.items() if validator.evolve(schema=others).is_valid(value)}
    beside = [each for name, each in schema.get("dependentSchemas", {}).items() if name in instance]
    for keyword in ("allOf", "anyOf", "oneOf"):
        beside += [each for each in schema.get(keyword, []) if validator.evolve(schema=each).is_valid(instance)]
    if "if" in schema:
        holds = validator.evolve(schema=schema["if"]).is_valid(instance)
        beside += [schema["if"], schema.get("then", True)] if holds else [schema.get("else", True)]
    for each in beside:
        found |= _evaluated(validator, instance, each)
    for keyword in ("$ref", "$dynamicRef"):
        if keyword in schema:
            resolved = validator._resolver.lookup(schema[keyword])
            there = validator.evolve(schema=resolved.contents, _resolver=resolved.resolver)
            found |= _evaluated(there, instance, resolved.contents)
    return found


# Of some drafts only.
_WHERE_KNOWN = {"additionalItems": _additional_items, "unevaluatedProperties": _unevaluated_properties}
