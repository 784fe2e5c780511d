"""Arrays whose items hang together: `uniqueItems`, `contains`, and how many of what there are."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import jsonschema
import pytest

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar.dfa import ByteDFA
from llm_diffusiongemma.grammar.distinct import REACHES, Checksum, values_of_language
from llm_diffusiongemma.grammar.language import Branching, Language, Literal, minimal_dfa, unite
from llm_diffusiongemma.grammar.numbers import number
from llm_diffusiongemma.grammar.samples import random_texts
from llm_diffusiongemma.grammar.scalars import string
from llm_diffusiongemma.grammar.schema import compile_schema, schema_language

STRINGS: dict[str, Any] = {"type": "string"}
INTEGERS: dict[str, Any] = {"type": "integer"}


def unique(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "uniqueItems": True, **more}


def containing(contains: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "contains": contains, **more}


CASES: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    (
        unique(STRINGS),
        [
            [],
            ["python", "llm"],
            ["llm", "local"],
            ["local", "llm", "model"],
            ["item1", "item2", "item3"],
            ["été", "école"],
            ["日本", "日記"],
        ],
        [["a", "a"], ["é", "b", "é"]],
    ),
    (unique(INTEGERS), [[3, 1, 2], [1000, 2000], [10001, -7]], [[1, 1], [5, 3, 5]]),
    (unique({"type": "number"}), [[2, 1.5], [0.25, 0]], [[1, 1.0], [0, -0.0], [1.5, 1.5]]),
    (unique({"type": "boolean"}), [[True, False], [False, True]], [[True, True]]),
    (unique({"type": "object"}), [[{}]], [[{}, {}]]),
    (unique(STRINGS, minItems=2, maxItems=2), [["b", "a"]], [["a"], ["a", "b", "c"], ["a", "a"]]),
    (unique(INTEGERS | {"minimum": 1, "maximum": 49}, minItems=6), [[3, 7, 12, 25, 31, 44]], [[3, 7]]),
    (
        unique({"enum": [f"value{n}" for n in range(50)]}),
        [["value9", "value2", "value40"]],
        [["value1", "value1"]],
    ),
    (unique({"enum": [1, 1.0, 2]}), [[2, 1], [1, 2]], [[1, 1.0]]),
    (unique(STRINGS, prefixItems=[INTEGERS]), [[1, "c", "b"]], [["b"], [1, "a", "a"]]),
    (unique(STRINGS, prefixItems=[STRINGS | {"maxLength": 3}]), [["a", "b"]], [["a", "a"], ["b", "a", "b"]]),
    (
        unique(STRINGS, contains={"const": "\x01"}, maxItems=2),
        [["\x01"], ["\x01", "b"]],
        [["b"], ["\x01", "\x01"]],
    ),
    (
        unique(INTEGERS | {"multipleOf": 337}, prefixItems=[INTEGERS | {"multipleOf": 331}], maxItems=2),
        [[331]],
        [[337], [331 * 337, 331 * 337]],
    ),
    (unique(STRINGS, contains={"const": "x"}), [["a", "x"], ["x"]], [["a"], ["x", "x"]]),
    (unique({"type": ["string", "object"]}), [["a", {}], [{}, "a"]], [[{}, {}], ["a", "a"]]),
    (containing({"const": 7}, items=INTEGERS), [[7], [1, 2, 7, 3], [7, 7]], [[], [1, 2]]),
    (containing({"const": 7}, minContains=2, maxItems=4), [[7, 1, 7], ["a", 7, "b", 7]], [[7], [7, 1, 1, 1, 7]]),
    (containing({}, maxContains=2), [["a"], [1, []]], [[], [1, 2, 3]]),
    (containing(STRINGS, maxContains=1), [["a"], [1, "a", 2]], [[], [1], ["a", "b"]]),
    (containing(STRINGS, minContains=0, maxContains=1), [[], [1, 2], [1, "a"]], [["a", 1, "b"]]),
    (containing(STRINGS, prefixItems=[INTEGERS], minItems=3), [[1, 2, "a"], [1, "a", 2]], [[1, 2, 3], [1, "a"]]),
    (containing(STRINGS, allOf=[{"contains": INTEGERS}]), [[1, "a"], [None, "a", None, 1]], [["a"], [1]]),
    ({"enum": [[1, 2]], "anyOf": [{"items": INTEGERS}], "unevaluatedItems": False}, [[1, 2]], [[1]]),
]


@pytest.mark.parametrize(("schema", "inside", "outside"), CASES)
def test_items_that_hang_together(schema: Any, inside: list[Any], outside: list[Any]) -> None:
    dfa = schema_language(schema)
    judge = jsonschema.Draft202012Validator(schema)
    for documents, right in ((inside, True), (outside, False)):
        texts = [json.dumps(document, ensure_ascii=False).encode() for document in documents]
        assert [text for text in texts if dfa.accepts(text) != right] == []
    assert [text for text in random_texts(dfa, 20, soft_length=25) if not judge.is_valid(json.loads(text))] == []


def test_values_that_are_listed_come_in_any_order() -> None:
    dfa = schema_language(unique({"enum": list("abcdef")}))
    for count in range(7):
        for values in itertools.permutations("abcdef", count):
            assert dfa.accepts(json.dumps(values).encode())


@pytest.mark.parametrize(("count", "in_any_order"), [(8, 8), (9, 7), (10, 5), (20, 3)])
def test_as_many_of_them_as_there_is_room_for(count: int, in_any_order: int) -> None:
    """What it is told as lowered to is what can be written, and eight values need not be lowered."""
    values = [f"e{number}" for number in reversed(range(count))]
    compiled = compile_schema(unique({"enum": values[::-1]}))
    assert [(each.asked, each.given) for each in compiled.lowered] == [(count, in_any_order)] * (
        count > in_any_order
    )
    for length in range(1, count + 1):
        assert compiled.dfa.accepts(json.dumps(values[:length]).encode()) == (length <= in_any_order)


@pytest.mark.parametrize("seed", range(6))
def test_all_arrays_of_a_few_values(seed: int) -> None:
    """Whatever is written is valid, and what is counted by kinds is written whatever its order."""
    rng = random.Random(seed)
    kinds = [{"type": "null"}, {"type": "boolean"}, {"type": ["null", "integer"]}]
    schema: dict[str, Any] = containing(
        rng.choice(kinds),
        items={"enum": [None, True, 5]},
        minItems=rng.randint(0, 2),
        maxItems=rng.randint(2, 4),
        minContains=rng.randint(0, 2),
        **({"maxContains": 2} if rng.random() < 0.5 else {}),
        **({"uniqueItems": True} if rng.random() < 0.3 else {}),
    )
    judge = jsonschema.Draft202012Validator(schema)
    try:
        dfa = schema_language(schema)
    except ConstraintError:
        dfa = None
    for count in range(5):
        for values in itertools.product([None, True, 5], repeat=count):
            accepted = dfa is not None and dfa.accepts(json.dumps(values).encode())
            assert accepted == judge.is_valid(list(values)), (schema, values)


def members_of(checksum: Checksum, language: Language, count: int) -> list[ByteDFA]:
    classes = checksum.classes(language, count)
    return [minimal_dfa(Branching(classes.dfa, ((ends, Literal(b"")),))) for ends in classes.ends]


@pytest.mark.parametrize("reach", [REACHES[0], REACHES[-1]])
def test_a_value_is_of_one_class_whatever_it_is_read_by(reach: int | None) -> None:
    """And of that modulo half as many."""
    part = string(maximum=9)
    whole = unite([part, string(formats=frozenset({"date", "email"})), number(), string(maximum=30)])
    checksum = Checksum(values_of_language(whole), reach)
    of_whole, of_half, of_part = (members_of(checksum, *each) for each in ((whole, 8), (whole, 4), (part, 8)))
    texts = [text for member in of_whole for text in random_texts(member, 20, soft_length=20)]
    texts += [text for member in of_part for text in random_texts(member, 20, soft_length=8)]
    assert len(texts) > 200
    for text in texts:
        (number_of_whole,) = (number for number, member in enumerate(of_whole) if member.accepts(text))
        (number_of_half,) = (number for number, member in enumerate(of_half) if member.accepts(text))
        assert number_of_half == number_of_whole % 4
        assert [number for number, member in enumerate(of_part) if member.accepts(text)] in ([], [number_of_whole])


def test_classes_have_no_value_in_common() -> None:
    languages = (string(), string(maximum=12), number(), string(formats=frozenset({"uri"})))
    for language, reach in itertools.product(languages, (REACHES[0], REACHES[-1])):
        members = members_of(Checksum(values_of_language(language), reach), language, 8)
        for mine, member in enumerate(members):
            for text in random_texts(member, 10, soft_length=15):
                value = json.loads(text)
                for other in json.dumps(value), json.dumps(float(value) if isinstance(value, int) else value):
                    found = [each.accepts(other.encode()) for each in members]
                    assert sum(found) <= 1
                    assert found[mine] or not any(found)


LATE: dict[str, tuple[Any, list[Any]]] = {
    "addresses": (STRINGS | {"format": "uri"}, [f"https://example.org/docs/{n}.html" for n in range(100, 120)]),
    "dates": (STRINGS | {"maxLength": 20}, [f"2026-11-{day}" for day in range(10, 31)]),
    "numbers": (INTEGERS, list(range(2_026_100, 2_026_120))),
}


@pytest.mark.parametrize("name", LATE)
def test_what_differs_late_can_be_written_as_well(name: str) -> None:
    items, values = LATE[name]
    dfa = compile_schema(unique(items)).dfa
    pairs = list(itertools.permutations(values, 2))
    assert sum(dfa.accepts(json.dumps(pair).encode()) for pair in pairs) > 0.6 * len(pairs)


def test_two_words_can_nearly_always_be_written() -> None:
    """In any order; of three two in three times, of four two in five. What they begin with makes no difference."""
    dfa = compile_schema(unique(STRINGS)).dfa
    words = "time person year way day thing man world life hand part child eye woman place work week case".split()
    pairs = list(itertools.permutations(words, 2))
    written = [dfa.accepts(json.dumps(pair).encode()) for pair in pairs]
    assert sum(written) > 0.9 * len(pairs)
    triples = list(itertools.permutations(words, 3))[::7]
    assert sum(dfa.accepts(json.dumps(triple).encode()) for triple in triples) > 0.6 * len(triples)
    fours = list(itertools.permutations(words, 4))[::199]
    assert sum(dfa.accepts(json.dumps(four).encode()) for four in fours) > 0.35 * len(fours)
