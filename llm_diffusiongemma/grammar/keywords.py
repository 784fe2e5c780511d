"""Keywords, read from all the plain dictionaries that a place must fulfil together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from .dialects import Part, Schema
from .places import Aside, Conjunction

TYPES = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))
SCALARS = TYPES - {"array", "object"}

# What these lead to is among the parts of every alternative.
IN_PLACE = ("$ref", "allOf", "anyOf")
UNEVALUATED = frozenset(("unevaluatedProperties", "unevaluatedItems"))


def without(part: Part, *keywords: str) -> Part:
    return {keyword: value for keyword, value in part.items() if keyword not in keywords}


def spellings(value: Any) -> Iterator[Any]:
    """A value, and the same in other numbers: 1 and 1.0 are equal, but of two types in draft 4."""
    yield value
    yield _with_numbers(value, lambda number: int(number) if float(number).is_integer() else number)
    yield _with_numbers(value, float)


def _with_numbers(value: Any, change: Callable[[float], float]) -> Any:
    if isinstance(value, list):
        return [_with_numbers(item, change) for item in value]
    if isinstance(value, dict):
        return {name: _with_numbers(item, change) for name, item in value.items()}
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    try:
        return change(value)
    except OverflowError:  # an integer that no double holds
        return value


def types_of(parts: Sequence[Part]) -> frozenset[str]:
    """The types that a value may have. Of a number that may have a fraction both number and integer are."""
    types = TYPES
    for part in parts:
        if "type" in part:
            named = frozenset([part["type"]] if isinstance(part["type"], str) else part["type"])
            types &= named | {"integer"} if "number" in named else named
    return types


def values_of(parts: Sequence[Part]) -> list[Any] | None:
    """The values that an enum or const leaves, not yet held against the other keywords; None without either."""
    for part in parts:
        if "const" in part:
            return [part["const"]]
        if "enum" in part:
            return list(part["enum"])
    return None


def judged(parts: Sequence[Part]) -> list[Part]:
    """What a value that is listed must fulfil: the judge looks at each part, and not twice at what one leads to.

    What is evaluated depends on what a part leads to, so one that asks for that is left whole.
    """
    return [
        part if part.keys() & UNEVALUATED else without(part, *IN_PLACE)
        for part in parts
        if not isinstance(part, Aside)
    ]


def frozen(value: Any) -> Any:
    """What is equal for equal JSON values, and can be looked up."""
    if isinstance(value, dict):
        return frozenset((name, frozen(item)) for name, item in value.items())
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def min_contains(part: Part) -> int:
    return int(part.get("minContains", 1)) if "contains" in part else 0


def max_contains(part: Part) -> int | None:
    return int(part["maxContains"]) if "contains" in part and "maxContains" in part else None


def largest_of(parts: Sequence[Part], keyword: str) -> int:
    return max((int(part[keyword]) for part in parts if keyword in part), default=0)


def smallest_of(parts: Sequence[Part], keyword: str, default: Any) -> Any:
    return min((int(part[keyword]) for part in parts if keyword in part), default=default)


def bounds_of(parts: Sequence[Part]) -> tuple[Decimal | None, Decimal | None, Decimal | None, Decimal | None]:
    """The strictest minimum, maximum, exclusiveMinimum and exclusiveMaximum."""
    found: dict[str, list[Decimal]] = {}
    for part in parts:
        for inclusive, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            strict = part.get(exclusive, False)
            if inclusive in part:
                # Draft 4 says by a boolean that the bound itself is excluded.
                found.setdefault(exclusive if strict is True else inclusive, []).append(_decimal(part[inclusive]))
            if not isinstance(strict, bool):
                found.setdefault(exclusive, []).append(_decimal(strict))
    return (
        max(found.get("minimum", ()), default=None),
        min(found.get("maximum", ()), default=None),
        max(found.get("exclusiveMinimum", ()), default=None),
        min(found.get("exclusiveMaximum", ()), default=None),
    )


def _decimal(bound: float) -> Decimal:
    # By its text, not its double: 0.1 must not exclude what is written 0.1.
    return Decimal(repr(bound))


def prefix_of(part: Part) -> list[Schema]:
    """The schemas of the first items; before 2020-12 a list under `items`."""
    items = part.get("items")
    prefix: list[Schema] = items if isinstance(items, list) else part.get("prefixItems", [])
    return prefix


def item_schemas(parts: Sequence[Part], index: int) -> Conjunction:
    """What the item at an index must fulfil."""
    schemas: list[Schema] = []
    for part in parts:
        prefix = prefix_of(part)
        others = other_items(part)
        if index < len(prefix):
            schemas.append(prefix[index])
        elif others is not None:
            schemas.append(others)
    return tuple(schemas)


def other_items(part: Part) -> Schema | None:
    """The schema of the items that follow the first ones."""
    others: Schema | None = part.get("additionalItems" if isinstance(part.get("items"), list) else "items")
    return others


def required_of(parts: Sequence[Part]) -> dict[str, None]:
    """The names of the properties that must be there, in order."""
    names: dict[str, None] = {}
    for part in parts:
        names |= dict.fromkeys(part.get("required", ()))
    return names


def declared_of(parts: Sequence[Part]) -> dict[str, None]:
    """The names of the properties that the schemas list, in their order."""
    names: dict[str, None] = {}
    for part in parts:
        names |= dict.fromkeys(part.get("properties", {}))
    return names


def patterns_of(part: Part) -> dict[str, Schema]:
    patterns: dict[str, Schema] = part.get("patternProperties", {})
    return patterns
