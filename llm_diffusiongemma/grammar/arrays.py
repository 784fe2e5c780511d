"""The arrays of one way through the choices."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from . import scalars
from .keywords import (
    frozen,
    item_schemas,
    largest_of,
    min_contains,
    other_items,
    prefix_of,
    smallest_of,
    types_of,
    values_of,
)
from .language import (
    ALL_BYTES,
    EMPTY_TEXT,
    MAX_STATES,
    NOTHING,
    Language,
    Literal,
    OneByte,
    Repetition,
    Separated,
    byte_range,
    byte_set,
    concatenate,
    embed,
    intersection,
    minimal_dfa,
    optional,
)
from .objects import in_place
from .places import Alternative, Conjunction, Place, refused

if TYPE_CHECKING:
    from .compiler import Compiler


# In which order `uniqueItems` wants the first characters of strings and integers: the members of a row don't
# come twice. A letter's two cases are one member.
_FIRST_CHARACTERS = {
    "string": [
        byte_set(b'"'),
        byte_range(0, ord("A") - 1) & ~byte_set(b'"'),
        *(byte_set((letter, letter + 32)) for letter in range(ord("A"), ord("Z") + 1)),
        ALL_BYTES & ~byte_range(0, ord("Z")) & ~byte_range(ord("a"), ord("z")),
    ],
    "integer": [byte_set(b"-"), *(byte_set((digit,)) for digit in b"0123456789")],
}


def array_language(compiler: Compiler, parts: Alternative, place: Place) -> Language:
    """The arrays that fulfil `parts`."""
    least = largest_of(parts, "minItems")
    asked = smallest_of(parts, "maxItems", None)
    contained: Conjunction = ()
    for part in parts:
        needed = min_contains(part)
        if needed > 0:
            # They come first.
            if contained and needed != 1:
                raise refused("minContains", "it stands beside another contains", place)
            contained = (*contained, part["contains"])
    leading = max(map(min_contains, parts), default=0)
    least = max(least, leading)
    if least > MAX_STATES:
        raise refused("minItems", f"{least:,} is too much to be counted", place)
    most = None if asked is None else min(asked, max(least, compiler.limits.count))
    if most is not None and most < least:
        return NOTHING
    if any(part.get("uniqueItems") for part in parts) and most not in (0, 1):
        return _unique_array(compiler, parts, least, asked, most, place)
    fixed = max([leading, *(len(prefix_of(part)) for part in parts)])
    rest = _item(compiler, parts, fixed, place) if most is None or most > fixed else NOTHING
    if asked is not None and most is not None and (rest is not NOTHING or most < fixed):
        compiler.lower("maxItems", asked, most, place)
    comma, _, _ = compiler.layout.gaps(place.nesting)
    if fixed == 0:
        items: Language = Separated((), rest, comma, max(least, 1), most)
    else:
        more = None if most is None else max(0, most - fixed)
        items = Repetition(concatenate(comma, rest), max(0, least - fixed), more)
        if rest is NOTHING:
            items = EMPTY_TEXT if least <= fixed else NOTHING
        for index in reversed(range(fixed if most is None else min(fixed, most))):
            item = _item(compiler, parts, index, place, contained if index < leading else ())
            items = concatenate(comma, item, items) if index else concatenate(item, items)
            if index and index >= least:
                items = EMPTY_TEXT if items is NOTHING else optional(items)
    return compiler.layout.enclosed(b"[]", items, place.nesting, least == 0)


def _item(compiler: Compiler, parts: Alternative, index: int, place: Place, extra: Conjunction = ()) -> Language:
    """What stands at an index of an array, which has to fulfil `extra` as well."""
    conjunction = item_schemas(parts, index) + extra
    for part in parts:
        if "unevaluatedItems" in part and not any(
            index < len(prefix_of(beside)) or other_items(beside) is not None
            for beside in in_place(compiler, part, parts, place)
        ):
            conjunction = (*conjunction, part["unevaluatedItems"])
    return compiler.language(conjunction, place.inside("[]", conjunction))


def _unique_array(
    compiler: Compiler, parts: Alternative, least: int, asked: int | None, most: int | None, place: Place
) -> Language:
    """Arrays whose items come in one fixed order, which keeps them different from each other."""
    if any(prefix_of(part) or "contains" in part or "unevaluatedItems" in part for part in parts):
        raise refused("uniqueItems", "it stands beside prefixItems, contains or unevaluatedItems", place)
    conjunction = item_schemas(parts, 0)
    inside = place.inside("[]", conjunction)
    members: list[Language] = []
    alternatives = compiler.alternatives(conjunction, inside)
    kinds = frozenset[str]().union(*(types_of(alternative) for alternative, _ in alternatives))
    listed = [values_of(alternative) for alternative, _ in alternatives]
    if kinds <= {"null", "boolean"}:
        listed = [[None, False, True]]
    if None not in listed:
        # By Python's equality, which is coarser than JSON schema's: 1 is True.
        distinct: dict[Any, Any] = {}
        for value in itertools.chain(*(values for values in listed if values is not None)):
            if compiler.is_valid(value, conjunction):
                distinct.setdefault(frozen(value), value)
        members = [scalars.literal(value) for value in distinct.values()]
    elif kinds <= {"string"} or kinds <= {"integer"}:
        kind = next(iter(kinds))
        members = list(_by_first_character(kind, compiler.language(conjunction, inside)))
    elif least > 1:
        raise refused("uniqueItems", "items of this kind can't be kept different", place)
    else:
        members = [compiler.language(conjunction, inside)]
    if asked is not None and most is not None and most < len(members):
        compiler.lower("maxItems", asked, most, place)
    comma, _, _ = compiler.layout.gaps(place.nesting)
    items = Separated(tuple((member, False) for member in members), None, comma, max(least, 1), most)
    return compiler.layout.enclosed(b"[]", items, place.nesting, least == 0)


@lru_cache(maxsize=64)
def _by_first_character(kind: str, item: Language) -> tuple[Language, ...]:
    """The texts of strings or integers in groups that have none in common. Raises `StateLimitError`."""
    dfa = minimal_dfa(item)
    quote = Literal(b'"' if kind == "string" else b"")
    anything = Repetition(OneByte(ALL_BYTES), 0, None)
    groups = [minimal_dfa(concatenate(quote, OneByte(first), anything)) for first in _FIRST_CHARACTERS[kind]]
    return tuple(embed(intersection(dfa, group)) for group in groups)
