"""The texts of JSON's numbers as regular languages.

A number with a point or an exponent is rounded to a double when it is read, an integer is not. Rounding keeps the
order: what is at least the text of a bound is at least the bound's double. So a text may have any number of
digits, and a bound that is excluded is held by the next double beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np

from .dfa import ByteDFA
from .language import (
    MAX_STATES,
    NOTHING,
    Language,
    Literal,
    OneByte,
    Repetition,
    StateLimitError,
    byte_range,
    byte_set,
    concatenate,
    embed,
    intersection,
    minimal_dfa,
    optional,
    unite,
)
from .minimal import minimised

# Of an integer, and before and behind a point. Identifiers of 64 bits have 20, and so has the longest fraction of
# a double that is written without an exponent. A bound of more digits allows more of an integer.
DIGITS = 20
# The most that a bound, which no text need reach, allows an integer.
BOUND_DIGITS = 40
# Behind the point of a number with an exponent: a double is told from all others by 17 digits.
MANTISSA_DIGITS = 16
EXPONENT_DIGITS = 2
# A decimal of so many digits is told from every other such decimal after it has been rounded to a double.
EXACT_DIGITS = 15

# Of an automaton that tells multiples by their remainders; then of one that counts digits beside them, where these
# become fewer, but one more than the factor has.
MAX_REMAINDERS = 4000
MAX_MULTIPLES = 4000

_DIGIT = OneByte(byte_range(ord("0"), ord("9")))
_NONZERO_DIGIT = OneByte(byte_range(ord("1"), ord("9")))
_MINUS = Literal(b"-")
_SYMBOLS = "0123456789."


@dataclass(frozen=True)
class Bounds:
    """minimum <= x <= maximum and above < x < below; None is no bound.

    Each is the text of the number in the schema, so 1 and 1.0 are different: the one is an integer, the other a
    double.
    """

    minimum: Decimal | None = None
    maximum: Decimal | None = None
    above: Decimal | None = None
    below: Decimal | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return (self.minimum, self.maximum, self.above, self.below) != (None, None, None, None)

    def negated(self) -> Bounds:
        """Those of -x."""
        return Bounds(_minus(self.maximum), _minus(self.minimum), _minus(self.below), _minus(self.above))

    def least_integer(self) -> int | None:
        """The least integer within the bounds; None if none is the least."""
        lows = [math.ceil(value) for value in _values(self.minimum)]
        lows += [math.floor(value) + 1 for value in _values(self.above)]
        return max(lows, default=None)

    def most_integer(self) -> int | None:
        """The greatest integer within the bounds; None if none is the greatest."""
        least = self.negated().least_integer()
        return None if least is None else -least

    def least_double(self) -> Decimal | None:
        """A number of which all that are not less are within the bounds below, as doubles also; None without one.

        It is the text of the least such double, or a bound's own.
        """
        lows: list[Decimal] = []
        if self.minimum is not None:
            nearest = _double_of(self.minimum)
            if nearest < _value(self.minimum):
                nearest = math.nextafter(nearest, math.inf)
            lows += [self.minimum, Decimal(repr(nearest))]
        if self.above is not None:
            nearest = _double_of(self.above)
            if nearest <= _value(self.above):
                nearest = math.nextafter(nearest, math.inf)
            lows.append(Decimal(repr(nearest)))
        return max(lows, default=None)

    def most_double(self) -> Decimal | None:
        """The same of those that are not greater."""
        return _minus(self.negated().least_double())


def _minus(bound: Decimal | None) -> Decimal | None:
    return None if bound is None else bound.copy_negate()


def _is_infinite(bound: Decimal | None) -> bool:
    return bound is not None and bound.is_infinite()


def _is_integer(bound: Decimal) -> bool:
    """Whether it was written without a point and an exponent. A double of which this is true is exact as well."""
    return bound.as_tuple().exponent == 0


def _double_of(bound: Decimal) -> float:
    try:
        return float(bound)
    except OverflowError:
        return math.copysign(math.inf, bound)


def _value(bound: Decimal) -> Fraction:
    """What a bound is to a validator."""
    return Fraction(bound) if _is_integer(bound) else Fraction(_double_of(bound))


def _values(bound: Decimal | None) -> list[Fraction]:
    """What a bound is as it is written, and to a validator."""
    return [] if bound is None else [Fraction(bound), _value(bound)]


@dataclass(frozen=True)
class _Numerals:
    """Numerals without a sign: so many digits before the point and so many behind it; with none there is no point.

    States: the part of the numeral, and how many of its digits have been read.
    """

    digits: int
    fraction_digits: int
    has_point: bool
    """Whether it must stand there."""

    start = ("start", 0)

    def steps(self, state: tuple[str, int]) -> list[tuple[str, int] | None]:
        """The state behind each symbol; None if no numeral goes on so."""
        return [self._step(state, symbol) for symbol in _SYMBOLS]

    def _step(self, state: tuple[str, int], symbol: str) -> tuple[str, int] | None:
        part, count = state
        if symbol == ".":
            return ("fraction", 0) if part in ("zero", "whole") and self.fraction_digits else None
        if part == "start":
            return ("zero", 1) if symbol == "0" else ("whole", 1)
        most = {"zero": 1, "whole": self.digits, "fraction": self.fraction_digits}[part]
        return (part, count + 1) if count < most else None

    def accepts(self, state: tuple[str, int]) -> bool:
        part, count = state
        return count > 0 if part == "fraction" else part != "start" and not self.has_point


class _Comparison:
    """Numerals that are at least, or at most, a bound, which is not negative.

    States: how many digits of this part of the bound have been read, how the first difference went, and whether
    the point has been passed.
    """

    start = (0, 0, False)

    def __init__(self, bound: Decimal, at_least: bool) -> None:
        self.wanted = (0, 1) if at_least else (0, -1)
        whole, _, fraction = f"{bound.copy_abs():f}".partition(".")
        self.whole = whole.lstrip("0") or "0"
        self.fraction = fraction.rstrip("0")

    def steps(self, state: tuple[int, int, bool]) -> list[tuple[int, int, bool]]:
        """The state behind each symbol."""
        return [self._step(state, symbol) for symbol in _SYMBOLS]

    def _step(self, state: tuple[int, int, bool], symbol: str) -> tuple[int, int, bool]:
        count, order, behind = state
        if symbol == ".":
            return (0, self._order_of_whole(count, order), True)
        digits = self.fraction if behind else self.whole
        if behind and order:
            return (0, order, True)
        if not behind and count >= len(digits):
            return (len(digits) + 1, 1, False)
        expected = digits[count] if count < len(digits) else "0"
        return (min(count + 1, len(digits)), order or (symbol > expected) - (symbol < expected), behind)

    def _order_of_whole(self, count: int, order: int) -> int:
        return -1 if count < len(self.whole) else order

    def accepts(self, state: tuple[int, int, bool]) -> bool:
        count, order, behind = state
        if not behind:
            count, order = 0, self._order_of_whole(count, order)
        return (order or (-1 if self.fraction[count:] else 0)) in self.wanted


@lru_cache(maxsize=1024)
def _between(shape: _Numerals, least: Decimal | None, most: Decimal | None) -> Language:
    """The numerals of a shape from `least` to `most`; None is no bound. Raises `StateLimitError`."""
    if (most is not None and (most < 0 or (least is not None and most < least))) or _is_infinite(least):
        return NOTHING
    comparisons: list[_Comparison] = []
    if least is not None and least > 0:
        comparisons.append(_Comparison(least, at_least=True))
    if most is not None and not most.is_infinite():
        comparisons.append(_Comparison(most, at_least=False))
    readers: list[Any] = [shape, *comparisons]
    steps = [cache(reader.steps) for reader in readers]
    start = tuple(reader.start for reader in readers)
    numbers = {start: 0}
    states = [start]
    rows: list[list[int]] = []
    while len(rows) < len(states):
        row: list[int] = []
        for target in zip(*(follow(at) for follow, at in zip(steps, states[len(rows)], strict=True)), strict=True):
            number = -1 if target[0] is None else numbers.setdefault(target, len(states))
            if number == len(states):
                states.append(target)
            row.append(number)
        rows.append(row)
        if len(states) > MAX_STATES:
            raise StateLimitError
    accepting = [all(r.accepts(at) for r, at in zip(readers, state, strict=True)) for state in states]
    moves = np.full((len(states) + 1, len(_SYMBOLS) + 1), len(states), np.int32)
    moves[:-1, :-1] = np.where(np.array(rows) < 0, len(states), rows)
    symbol_of = np.full(256, len(_SYMBOLS))
    symbol_of[[ord(symbol) for symbol in _SYMBOLS]] = np.arange(len(_SYMBOLS))
    return embed(minimised(ByteDFA.of(moves, symbol_of, np.array([*accepting, False]))))


Between = Callable[[Decimal | None, Decimal | None], Language]


def _signed(between: Between, low: Decimal | None, high: Decimal | None) -> Language:
    """The numbers from `low` to `high`, of what there is between two that aren't negative."""
    return unite([between(low, high), concatenate(_MINUS, between(_minus(high), _minus(low)))])


def _scientific(least: Decimal | None, most: Decimal | None) -> Language:
    """Numbers with a digit that isn't 0, a fraction or none, and an exponent, from `least` to `most`."""
    if (most is not None and (most <= 0 or (least is not None and most < least))) or _is_infinite(least):
        return NOTHING
    shape = _Numerals(1, MANTISSA_DIGITS, has_point=False)
    largest = 10**EXPONENT_DIGITS - 1
    first, last = -largest - 1, largest + 1
    least_digits = most_digits = None
    if least is not None and least > 0:
        first, least_digits = least.adjusted(), _mantissa(least)
    if most is not None and not most.is_infinite():
        last, most_digits = most.adjusted(), _mantissa(most)
    one = Decimal(1)
    if first == last:
        return concatenate(_between(shape, least_digits, most_digits), _exponents(first, first))
    return unite(
        [
            concatenate(_between(shape, least_digits or one, None), _exponents(first, first)),
            concatenate(_between(shape, one, None), _exponents(first + 1, last - 1)),
            concatenate(_between(shape, one, most_digits), _exponents(last, last)),
        ]
    )


def _mantissa(bound: Decimal) -> Decimal:
    return Decimal((0, bound.as_tuple().digits, 1 - len(bound.as_tuple().digits)))


def _exponents(first: int, last: int) -> Language:
    """Exponents of one or two digits from `first` to `last`."""
    sign = unite(
        [_digits_from(max(first, 0), last), concatenate(Literal(b"+"), _digits_from(max(first, 0), last))]
    )
    negative = concatenate(_MINUS, _digits_from(max(-last, 0), -first))
    return concatenate(OneByte(byte_set(b"eE")), unite([sign, negative]))


def _digits_from(first: int, last: int) -> Language:
    """The numbers from `first` to `last` in two digits, or in one if they are less than 10."""
    last = min(last, 10**EXPONENT_DIGITS - 1)
    found: list[Language] = [_digits(first, min(last, 9))]
    for tens in range(10):
        ones = _digits(max(first - 10 * tens, 0), min(last - 10 * tens, 9))
        found.append(concatenate(_digits(tens, tens), ones))
    return unite(found)


def _digits(first: int, last: int) -> Language:
    return OneByte(byte_range(ord("0") + first, ord("0") + last)) if first <= last else NOTHING


@cache
def number() -> Language:
    """JSON numbers of at most 20 digits before and behind the point, with an exponent of at most two digits."""
    return embed(minimal_dfa(concatenate(optional(_MINUS), _unsigned())))


def _unsigned() -> Language:
    whole = unite([Literal(b"0"), concatenate(_NONZERO_DIGIT, Repetition(_DIGIT, 0, DIGITS - 1))])
    fraction = concatenate(Literal(b"."), Repetition(_DIGIT, 1, DIGITS))
    exponent = concatenate(
        OneByte(byte_set(b"eE")), optional(OneByte(byte_set(b"+-"))), Repetition(_DIGIT, 1, EXPONENT_DIGITS)
    )
    return concatenate(whole, optional(fraction), optional(exponent))


@lru_cache(maxsize=256)
def integer(bounds: Bounds = Bounds(), factor: int = 1) -> Language:
    """Integers within the bounds that are multiples of a factor, without a point and an exponent.

    Where no bound ends them they have at most 20 digits, or fewer if the factor makes each of them dear
    (`longest_multiple`). Raises `StateLimitError`.
    """
    low, high = bounds.least_integer(), bounds.most_integer()
    longest = longest_multiple(factor)
    positive = _integers(max(low or 0, 0), high, longest)
    negative = _integers(max(1, -high if high is not None else 1), None if low is None else -low, longest)
    found = minimal_dfa(unite([positive, concatenate(_MINUS, negative)]))
    return embed(found if factor == 1 else intersection(found, multiples(factor)))


def _integers(least: int, most: int | None, longest: int) -> Language:
    """From `least`, which isn't negative, to `most`. If that is None: of so many digits, or as many as `least`."""
    fewest = len(str(least))
    if most is None:
        return _between(_Numerals(max(longest, fewest), 0, has_point=False), Decimal(least), None)
    digits = min(len(str(most)), max(BOUND_DIGITS, fewest))
    return _between(_Numerals(digits, 0, has_point=False), Decimal(least), Decimal(most))


@lru_cache(maxsize=256)
def bounded_number(bounds: Bounds) -> Language:
    """Numbers within the bounds: integers, decimals of at most 20 digits before and behind the point, and numbers
    with an exponent of at most two digits and, unless 0 is the only bound, one digit before the point.

    Raises `StateLimitError`.
    """
    if bounds == Bounds(minimum=Decimal(0)):
        return embed(minimal_dfa(unite([_unsigned(), Literal(b"-0.0")])))
    low, high = bounds.least_double(), bounds.most_double()
    decimals = partial(_between, _Numerals(DIGITS, DIGITS, has_point=True))
    forms = [integer(bounds), _signed(decimals, low, high), _signed(_scientific, low, high)]
    return embed(minimal_dfa(unite(forms)))


@lru_cache(maxsize=256)
def multiple(bounds: Bounds, factor: Fraction) -> Language:
    """The multiples within the bounds of a factor that is a decimal, written without an exponent.

    They have as many digits behind the point as the factor at most, or a 0, and 15 in all, so that a double is
    told from its neighbours. Raises `StateLimitError`.
    """
    numerator, places = _scaled(factor)
    low, high = bounds.least_double(), bounds.most_double()
    digits = EXACT_DIGITS - max(places, 1)
    if low is None or high is None:
        digits = min(digits, longest_multiple(factor))
    decimals = partial(_between, _Numerals(digits, max(places, 1), has_point=True))
    found = intersection(minimal_dfa(_signed(decimals, low, high)), multiples(numerator, places))
    return embed(minimal_dfa(unite([integer(bounds, factor.numerator), embed(found)])))


def longest_multiple(factor: Fraction | int) -> int:
    """Of how many digits before the point multiples are at most, where no bound asks for more.

    Raises `StateLimitError` for a factor that can't be counted by.
    """
    if factor == 1:
        return DIGITS
    numerator, places = _scaled(Fraction(factor))
    states = multiples(numerator, places).dead
    return min(DIGITS, max(len(str(int(factor))) + 1, MAX_MULTIPLES // states))


def _scaled(factor: Fraction) -> tuple[int, int]:
    """A decimal as numerator and digits behind the point. Raises `StateLimitError` if these are too many."""
    for places in range(EXACT_DIGITS):
        if (factor * 10**places).denominator == 1:
            return int(factor * 10**places), places
    raise StateLimitError


@lru_cache(maxsize=64)
def multiples(numerator: int, places: int = 0) -> ByteDFA:
    """The numerals, signed or not, of the multiples of numerator / 10^places; with `places` 0 also followed by a
    point and zeros.

    Else they have at most `places` digits behind the point. Raises `StateLimitError`.
    """
    if numerator * (places + 2) > MAX_REMAINDERS:
        raise StateLimitError
    # State 0 is before the first digit. Then come a state for each remainder before the point (block 0), the same
    # behind it with no digit (block 1), with one, and so on.
    blocks = 2 + max(places, 1)
    dead = 1 + numerator * blocks
    remainders = np.arange(numerator)
    transitions = np.full((dead + 1, 256), dead, np.int32)
    transitions[0, ord("-")] = 0
    transitions[1 : 1 + numerator, ord(".")] = 1 + numerator + remainders
    for digit in range(10):
        following = (10 * remainders + digit) % numerator
        transitions[0, ord("0") + digit] = 1 + digit % numerator
        for block in range(1 + places):
            first = 1 + block * numerator
            target = first if block == 0 else first + numerator
            transitions[first : first + numerator, ord("0") + digit] = target + following
    if places == 0:
        first = 1 + numerator
        for block in (first, first + numerator):
            transitions[block : block + numerator, ord("0")] = first + numerator + remainders
    accepting = np.zeros(dead + 1, np.bool_)
    for block in {*range(blocks)} - {1}:
        missing = 10 ** max(places - max(block - 1, 0), 0)
        first = 1 + block * numerator
        accepting[first : first + numerator] = remainders * missing % numerator == 0
    return minimised(ByteDFA.of(transitions, np.arange(256), accepting))


def common_multiple(factors: Sequence[Fraction]) -> Fraction:
    """The least number that is a multiple of all factors."""
    found = factors[0]
    for factor in factors[1:]:
        scale = math.lcm(found.denominator, factor.denominator)
        found = Fraction(math.lcm(int(found * scale), int(factor * scale)), scale)
    return found
