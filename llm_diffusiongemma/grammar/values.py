"""The values of one way through the choices: numbers and strings, what is listed, and all types together."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from ..errors import ConstraintError
from . import numbers, scalars
from .arrays import array_language
from .excepted import numbers_but, strings_but
from .formats import FORMATS, LONGEST_NAMES, longest_name
from .keywords import SCALARS, bounds_of, judged, largest_of, smallest_of, types_of, values_of, without
from .language import MAX_STATES, NOTHING, Embedded, Language, Literal, StateLimitError, same_language, unite
from .negation import NOT_MULTIPLE, NOT_PATTERN, NOT_POSSIBLE, NOT_VALUES
from .objects import object_language
from .places import Alternative, Place, refused

if TYPE_CHECKING:
    from .compiler import Compiler


def value_language(compiler: Compiler, parts: Alternative, place: Place) -> Language:
    """The values that fulfil `parts`, one way through the choices of a place."""
    values = values_of(parts)
    if values is not None:
        # Where the values come from they need not be looked up again, nor what stands among the parts itself.
        first = next(part for part in parts if "enum" in part or "const" in part)
        source = "const" if "const" in first else "enum"
        others = judged([without(part, source) if part is first else part for part in parts])
        return unite(
            [compiler.layout.literal(value, place.nesting) for value in values if compiler.is_valid(value, others)]
        )
    types = types_of(parts)
    if place.free >= compiler.limits.nesting and types - SCALARS:
        types &= SCALARS
        compiler.end("nesting", compiler.limits.nesting, place)
    for part in parts:
        if NOT_POSSIBLE in part:
            raise refused(
                part[NOT_POSSIBLE], "what breaks it, as a not, if or oneOf asks for, is not regular", place
            )
    branches: list[Language] = []
    patterns = [part[NOT_PATTERN] for part in parts if NOT_PATTERN in part]
    excluded = [value for part in parts for value in part.get(NOT_VALUES, ())]
    if "null" in types and None not in excluded:
        branches.append(Literal(b"null"))
    if "boolean" in types:
        booleans = [value for value in (True, False) if not any(value is each for each in excluded)]
        branches.append(unite([scalars.literal(value) for value in booleans]))
    if types & {"integer", "number"}:
        branches.append(
            numbers_but(
                number_language(compiler, parts, "number" in types, place),
                [part[NOT_MULTIPLE] for part in parts if NOT_MULTIPLE in part],
                excluded,
            )
        )
    if "string" in types:
        branches.append(strings_but(string_language(compiler, parts, place), patterns, excluded))
    if "array" in types:
        branches.append(array_language(compiler, parts, place))
    if "object" in types:
        branches.append(object_language(compiler, parts, place))
    return unite(branches)


def number_language(compiler: Compiler, parts: Alternative, fractions: bool, place: Place) -> Language:
    """The numbers among them; integers only unless `fractions`."""
    minimum, maximum, above, below = bounds_of(parts)
    bounds = numbers.Bounds(minimum, maximum, above, below)
    # By their texts, not their doubles: 0.01 is a hundredth.
    factors = [Fraction(str(part["multipleOf"])) for part in parts if "multipleOf" in part]
    if (bounds.least_integer() or 0) >= 10**300 or (bounds.most_integer() or 0) <= -(10**300):
        raise refused("minimum or maximum", "it has more than 300 digits", place)
    if not factors:
        if not fractions:
            return numbers.integer(bounds)
        return numbers.bounded_number(bounds) if bounds.any else numbers.number()
    factor = numbers.common_multiple(factors)
    try:
        return numbers.multiple(bounds, factor) if fractions else numbers.integer(bounds, factor.numerator)
    except StateLimitError:
        raise refused(
            "multipleOf", f"to count by {float(factor):g} takes too many remainders or digits", place
        ) from None


def string_language(compiler: Compiler, parts: Alternative, place: Place) -> Language:
    """The strings among them."""
    least = largest_of(parts, "minLength")
    asked = smallest_of(parts, "maxLength", None)
    most = None if asked is None else min(asked, max(least, compiler.limits.length))
    if most is not None and most < least:
        return NOTHING
    if least > MAX_STATES:
        raise refused("minLength", f"{least:,} is too much to be counted", place)
    patterns = frozenset(part["pattern"] for part in parts if "pattern" in part)
    formats = frozenset(part["format"] for part in parts if part.get("format") in FORMATS)
    # What has none of these names is the same under all limits.
    longest = compiler.limits.name if formats & LONGEST_NAMES.keys() else scalars.LONGEST_NAME
    asked_for = least, most, patterns, formats, longest
    try:
        text = scalars.string(*asked_for)
    except ConstraintError as error:
        raise ConstraintError(f"The keyword pattern at {place.path} can't be guaranteed: {error}") from None
    if isinstance(text, Embedded) and (least or most is not None):
        # Each pattern is a product of its own.
        compiler.made(asked_for, text.dfa.dead * max(1, len(patterns)))
    if asked is not None and most is not None and most < asked:
        unbounded = scalars.string(least, None, patterns, formats, longest)
        if not same_language(text, unbounded):
            compiler.lower("maxLength", asked, most, place)
    for name in sorted(formats & LONGEST_NAMES.keys()):
        given = longest_name(name, compiler.limits.name)
        compiler.lower(f"format {name}", LONGEST_NAMES[name], given, place)
    return text
