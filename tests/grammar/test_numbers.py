"""Numbers: within their bounds after they have been rounded to doubles, and all that json.dumps writes of them."""

from __future__ import annotations

import json
import math
import random
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from llm_diffusiongemma.grammar.schema import compile_schema

NUMBER, INTEGER = {"type": "number"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        (INTEGER, ["12345678901234567890", "-9223372036854775808", "0"], ["-0", "1.0", "1e3", "1" * 21]),
        (INTEGER | {"minimum": -(2**63), "maximum": 2**64 - 1}, [str(2**64 - 1)], [str(2**64), str(-(2**63) - 1)]),
        (INTEGER | {"minimum": 10**24}, ["1" + "0" * 24], ["9" * 24]),
        (INTEGER | {"maximum": 10**24}, ["1" + "0" * 24], ["1" + "0" * 23 + "1"]),
        (INTEGER | {"maximum": 1.7976931348623157e308}, ["9" * 20], []),
        (NUMBER, ["1.5e+20", "1e-05", "-0.0", "12345678901234567890", "52.520006599999997"], ["1e+100", "."]),
        (NUMBER | {"minimum": 0}, ["0", "-0.0", "1e-05", "12.5E+3", "5.0"], ["-1", "-0.1", "-1e-5"]),
        (
            NUMBER | {"minimum": 0, "maximum": 1},
            ["1e-05", "1", "1.0", "1e0", "0.123456789012345678"],
            ["1e1", "1.01"],
        ),
        (
            NUMBER | {"minimum": -90, "maximum": 90},
            ["-89.12345678901234", "9e+01"],
            ["90.00000000000001", "9.1e1"],
        ),
        (NUMBER | {"exclusiveMinimum": 0}, ["1e-99", "0.00000000000000000001"], ["0", "0.0", "-0.0", "0e1"]),
        (NUMBER | {"exclusiveMaximum": 1}, ["0.9999999999999999"], ["0.99999999999999999", "1", "1.0"]),
        (NUMBER | {"exclusiveMinimum": 0.1}, ["0.10000000000000002"], ["0.1", "0.100000000000000001"]),
        (NUMBER | {"minimum": 2**53 + 1}, [str(2**53 + 1), "9007199254740994.0"], ["9007199254740993.0"]),
        (NUMBER | {"minimum": 1e20}, ["1e+20", "100000000000000000000"], ["9.9e19"]),
        (NUMBER | {"minimum": 1e-9, "maximum": 2e-9}, ["1.5e-09", "0.0000000015"], ["0", "1e-8"]),
        (NUMBER | {"multipleOf": 0.01}, ["19.99", "-0.1", "5", "5.0", "5.00"], ["0.005", "1.001", "5.000"]),
        (NUMBER | {"multipleOf": 0.01, "maximum": 99999999999.99}, ["99999999999.99"], ["100000000000"]),
        (NUMBER | {"multipleOf": 0.25, "minimum": 0}, ["0.75", "1.5", "2.0", "2"], ["0.1", "1.55", "-0.25"]),
        (NUMBER | {"multipleOf": 2.5}, ["7.5", "-5", "5.0"], ["2", "0.5"]),
        (NUMBER | {"multipleOf": 0.3}, ["0.9", "1.2", "3"], ["1", "0.1"]),
        (NUMBER | {"multipleOf": 5}, ["10", "10.0"], ["10.5", "11"]),
        (NUMBER | {"multipleOf": 0.5, "allOf": [{"multipleOf": 0.3}]}, ["1.5", "3"], ["0.5", "0.3"]),
        (INTEGER | {"multipleOf": 0.01}, ["7"], ["7.0", "7.5"]),
        (INTEGER | {"multipleOf": 997, "maximum": 10**6}, ["997", "0", "999991"], ["998", "1000988"]),
    ],
)
def test_texts_of_numbers(schema: Any, inside: list[str], outside: list[str]) -> None:
    compiled = compile_schema(schema)
    assert [text for text in inside if not compiled.dfa.accepts(text.encode())] == []
    assert [text for text in outside if compiled.dfa.accepts(text.encode())] == []
    assert all(compiled.validator.is_valid(json.loads(text)) for text in inside)


def near(rng: random.Random, bound: float) -> list[str]:
    """Texts of numbers near a bound, in the forms that people and programs write."""
    exact = Decimal(repr(bound))
    step = Decimal(10) ** rng.randint(-20, 0)
    found = []
    for value in (exact, exact + step, exact - step, exact + exact * step, exact - exact * step):
        double = float(value)
        above, below = math.nextafter(double, math.inf), math.nextafter(double, -math.inf)
        found += [json.dumps(each) for each in (double, above, below, int(value))]
        found += [f"{value:f}", f"{value:.1f}", f"{value:.16e}", f"{double:.0e}", f"{value:.3E}"]
    return found


BOUNDS = [0, 1, -7, 0.1, -2.5, 0.30000000000000004, 99.99, 1e-7, 1e16, 1e23, -(2**53) - 1, 2**63 - 1, 10**20 + 1]


@pytest.mark.parametrize("seed", range(5))
def test_numbers_near_their_bounds(seed: int) -> None:
    """The judge compares doubles; of what it finds valid all that json.dumps writes of a float can be written."""
    rng = random.Random(seed)
    keywords = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    for _ in range(6):
        bounds = {keyword: rng.choice(BOUNDS) for keyword in rng.sample(keywords, rng.choice((1, 1, 2)))}
        factor = rng.choice((None, None, 0.01, 0.5, 3))
        schema = NUMBER | bounds | ({} if factor is None else {"multipleOf": factor})
        # One value that is always there, so that bounds that exclude each other leave a language.
        compiled = compile_schema({"anyOf": [{"type": "null"}, schema]})
        for bound in [*bounds.values(), rng.uniform(-9, 9)]:
            for text in near(rng, bound):
                value = json.loads(text)
                written, valid = compiled.dfa.accepts(text.encode()), compiled.validator.is_valid(value)
                assert valid or not written, (schema, text)
                if written and factor is not None:
                    assert Fraction(text) % Fraction(str(factor)) == 0
                # Exponents have two digits.
                if valid and factor is None and text == json.dumps(value) and not 0 < abs(value) < 1e-99:
                    assert written, (schema, text)
