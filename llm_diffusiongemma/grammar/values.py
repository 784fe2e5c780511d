"""The values of one way through the choices: numbers and strings, what is listed, and all types together."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from ..errors import ConstraintError
from . import scalars
from .alternatives import IN_PLACE
from .arrays import array_language
from .keywords import SCALARS, bounds_of, excluded_types, largest_of, smallest_of, types_of, values_of, without
from .language import MAX_STATES, NOTHING, Language, Literal, StateLimitError, same_language, unite
from .objects import object_language
from .places import LIMITS, Alternative, Place, refused

if TYPE_CHECKING:
    from .compiler import Compiler


# Multiples are counted by a state for each remainder.
MAX_MULTIPLE = 2000

UNEVALUATED = {"unevaluatedItems", "unevaluatedProperties"}

# By type: what can't be narrowed to anything useful.
_REFUSED = {
    None: ("if",),
}


def value_language(compiler: Compiler, parts: Alternative, place: Place) -> Language:
    """The values that fulfil `parts`, one way through the choices of a place."""
    values = values_of(parts)
    if values is not None:
        # Where the values come from they need not be looked up again, nor what stands among the parts itself.
        first = next(part for part in parts if "enum" in part or "const" in part)
        source = "const" if "const" in first else "enum"
        others = [
            # What is evaluated depends on what a schema leads to.
            part if UNEVALUATED & part.keys() else without(part, *IN_PLACE, *([source] if part is first else []))
            for part in parts
        ]
        return unite([scalars.literal(value) for value in values if compiler.is_valid(value, others)])
    types = types_of(parts)
    if place.free >= compiler.limits.nesting and types - SCALARS:
        types &= SCALARS
        compiler.lower("nesting", LIMITS[0].nesting, compiler.limits.nesting, place)
    for kind, keywords in _REFUSED.items():
        for keyword in keywords:
            if (kind is None or kind in types) and any(keyword in part for part in parts):
                raise refused(keyword, "no finite automaton does it in general", place)
    if any(excluded_types(part) is None for part in parts):
        raise refused("not", "only types, and values out of a list, can be excluded", place)
    branches: list[Language] = []
    if "null" in types:
        branches.append(Literal(b"null"))
    if "boolean" in types:
        branches.append(unite([Literal(b"true"), Literal(b"false")]))
    if types & {"integer", "number"}:
        branches.append(number_language(compiler, parts, "number" in types, place))
    if "string" in types:
        branches.append(string_language(compiler, parts, place))
    if "array" in types:
        branches.append(array_language(compiler, parts, place))
    if "object" in types:
        branches.append(object_language(compiler, parts, place))
    return unite(branches)


def number_language(compiler: Compiler, parts: Alternative, fractions: bool, place: Place) -> Language:
    """The numbers among them; integers only unless `fractions`."""
    low, high, above, below = bounds_of(parts)
    multiple = _multiple(compiler, parts, place)
    if fractions and multiple == 1 and not any("multipleOf" in part for part in parts):
        if (low, high, above, below) == (None, None, None, None):
            return scalars.number()
        largest = 10**scalars.SIGNIFICANT_DIGITS
        if any(bound is not None and bound >= largest for bound in (low, above)) or any(
            bound is not None and bound <= -largest for bound in (high, below)
        ):
            raise refused("minimum or maximum", "it leaves only numbers of 16 digits or more", place)
        return scalars.bounded_number(low, above, high, below)
    lows = [math.ceil(low)] if low is not None else []
    lows += [math.floor(above) + 1] if above is not None else []
    highs = [math.floor(high)] if high is not None else []
    highs += [math.ceil(below) - 1] if below is not None else []
    if any(isinstance(part.get("multipleOf"), float) for part in parts):
        # Larger ones are rounded before they are divided.
        largest = 10**scalars.SIGNIFICANT_DIGITS - 1
        if max(lows, default=0) > largest or min(highs, default=0) < -largest:
            reason = "floating point, which a factor with a point means, is exact up to 15 digits only"
            raise refused("multipleOf", reason, place)
        lows, highs = [*lows, -largest], [*highs, largest]
    if any(abs(bound) >= 10**300 for bound in lows + highs):
        raise refused("minimum or maximum", "it has more than 300 digits", place)
    try:
        return scalars.integer(max(lows, default=None), min(highs, default=None), multiple)
    except StateLimitError:
        raise refused("multipleOf", "it needs too large an automaton", place) from None


def _multiple(compiler: Compiler, parts: Alternative, place: Place) -> int:
    """The integer of which all numbers are made multiples."""
    multiple = 1
    for part in parts:
        if "multipleOf" not in part:
            continue
        factor = part["multipleOf"]
        exact = Fraction(str(factor))
        # Multiples of p/q that are integers: those of p. jsonschema divides in floating point, which is exact
        # for integers if the double next to p/q is so near that the quotient is rounded back.
        error = abs(Fraction(factor) / exact - 1)
        if exact.numerator > MAX_MULTIPLE or error > Fraction(1, 1 << 54) or exact.denominator > 1000:
            raise refused("multipleOf", f"{factor} is no factor that can be counted by", place)
        multiple = math.lcm(multiple, exact.numerator)
    if multiple > MAX_MULTIPLE:
        raise refused("multipleOf", "the common multiple is too large to be counted by", place)
    return multiple


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
    formats = frozenset(part["format"] for part in parts if part.get("format") in scalars.FORMATS)
    try:
        text = scalars.string(least, most, patterns, formats, compiler.limits.name)
    except ConstraintError as error:
        raise ConstraintError(f"The keyword pattern at {place.path} can't be guaranteed: {error}") from None
    if asked is not None and most is not None and most < asked:
        unbounded = scalars.string(least, None, patterns, formats, compiler.limits.name)
        if not same_language(text, unbounded):
            compiler.lower("maxLength", asked, most, place)
    for name in sorted(formats & scalars.FORMATS_WITH_NAMES):
        compiler.lower(f"format {name}", LIMITS[0].name, compiler.limits.name, place)
    return text
