"""Regular expressions by ECMA 262, for what compiles them and what judges by them alike."""

from __future__ import annotations

import itertools
import json
import random
import re
from typing import Any

import pytest

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar.characters import json_string_character, utf8
from llm_diffusiongemma.grammar.language import Embedded, Language
from llm_diffusiongemma.grammar.pattern import is_found, pattern_language, regex_language, search_language
from llm_diffusiongemma.grammar.samples import random_texts
from llm_diffusiongemma.grammar.schema import compile_schema

DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"
EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"

# Pattern, texts in which it is found, texts in which it isn't: by the standard, with the flag u. The comments name
# the texts of which Python's `re` says something else.
ECMA = [
    # Classes are ASCII, but for white space; their complements are all the rest of Unicode.
    (r"^\d$", ["7"], ["٣", "x"]),  # ٣
    (r"^\D+$", ["José Müller", "日本", "٣", "\n"], ["a1"]),  # ٣
    (r"^\w+$", ["a_9"], ["é", "日"]),  # é, 日
    (r"^\W$", ["é", "日", "-", "\n"], ["a", "_"]),  # é, 日
    (r"^\s$", [" ", "\t", "\n", "\v", "\u00a0", "\u2028", "\u3000", "\ufeff"], ["\x1c", "\x85", "\u200b"]),
    (r"^\S$", ["a", "\x1c", "\x85", "é"], ["\u00a0", "\ufeff"]),  # all but a and é
    (r"^[^\d]$", ["é", "x"], ["1"]),
    (r"^[\D]$", ["é"], ["1"]),
    (r"^[^\W]$", ["a", "_"], ["é", "-"]),
    # A dot is no line end, of which there are four; a dollar is the very end.
    (r"^.$", ["é", "😀", "\x85", "\x0b"], ["\n", "\r", "\u2028", "\u2029", "ab"]),
    (r"^a$", ["a"], ["a\n", "b\na", "a\nb"]),  # a\n
    (r"a$|^b", ["xa", "bx"], ["ax", "xb"]),
    (r"x(?:^|y)", ["xy"], ["x"]),
    (r"^^a$$", ["a"], ["aa"]),
    (r"(a|^b$)c?", ["xa", "b", "ac"], ["xb", "bx"]),
    (r"\Aa\Z", ["a"], ["a\n", "ba"]),
    # Braces and brackets that are text.
    (r"^a{,3}$", ["a{,3}"], ["", "a", "aa", "aaa"]),  # all of them
    (r"^a{,}$", ["a{,}"], ["a"]),
    (r"^a{x}]}{$", ["a{x}]}{"], ["a"]),
    (r"^a{2}b{1,}c{0,2}$", ["aab", "aabbcc"], ["ab", "aabccc"]),
    (r"^[]$", [], ["", "]", "a"]),
    (r"^[^]$", ["a", "\n", "]", "😀"], ["", "ab"]),
    (r"^[^]a]$", [], ["b", "a"]),  # a set of everything, and then "a]"
    (r"^[^]a]$", ["xa]"], ["b"]),
    # Escapes.
    (r"^\-\/\@\"\_\ \%$", ['-/@"_ %'], ["\\-"]),
    (r"^\x41\u00e9\u{1F600}\cJ\0\t$", ["Aé😀\n\0\t"], []),
    (r"^\uD83D\uDE00$", ["😀"], []),
    (r"^[\uD83D\uDE00-\uD83D\uDE02]$", ["😁"], ["\u00e9"]),
    (r"^[\b]$", ["\b"], ["b"]),
    (r"^[\w-.]$", ["-", ".", "a"], [",", "/"]),
    (r"^[a-\d]$", ["a", "-", "5"], ["b"]),
    (r"^[+--]$", ["+", ",", "-"], ["*", "."]),
    (r"^\012\101$", ["\nA"], []),
    # Groups and lazy quantifiers.
    (r"^(?<year>\d{4})-(?P<month>\d\d)(?:-\d\d)??$", ["2024-01", "2024-01-31"], ["2024"]),
    (r"^(a*?b+?)+?$", ["aabb", "bab"], ["a"]),
    (r"^(?:a?){3}$", ["", "aaa"], ["aaaa"]),
    # Properties, as far as they are general categories.
    (r"^[\p{L} ]+$", ["José 日本", "ß"], ["a1", "-", ""]),
    (r"^\p{Lu}\p{Ll}+\P{L}$", ["Élan!", "Ab1"], ["élan!", "Abc"]),
    (r"^\p{Letter}\p{gc=Nd}\p{General_Category=Symbol}$", ["a٣€"], ["a3b"]),
    (r"^[^\p{L}\d]$", ["-", "٣"], ["é", "1"]),
    (r"^\p{ASCII}\p{Any}\p{LC}$", ["a\nb", "a日É"], ["éab", "a-日"]),
    # Flags.
    (r"(?i)^straße[k]$", ["STRAẞE\u212a", "straßek"], ["STRASSEk"]),
    (r"^(?i:a)b$", ["Ab", "ab"], ["aB"]),
    (r"^(?i)a(?-i:b)[^c]$", ["Abd"], ["ABd", "abC"]),
    (r"(?m)^b$", ["a\nb\nc", "b", "a\u2028b"], ["ab", "a\nbc"]),
    (r"^(?s:.)(?s).$", ["\n\n"], ["a"]),
    # Word boundaries, of ASCII words.
    (r"\bcat\b", ["cat", "a cat.", "écaté"], ["cats", "_cat"]),  # écaté
    (r"^\bword\B", ["words"], ["word", " words"]),
    (r"^(\b\w+\b ?)+$", ["so many words"], ["a  b", ""]),
    # Look-aheads: at the front, in the middle, at the end, inside of each other and of a repetition.
    (DECIMAL, ["19.99", "-5", "+.5", "007."], ["", ".", "-", "+-1", "1e5"]),
    (EMAIL, ["a.b@example.org", "x@y.zz"], [".a@b.cc", "a..b@c.dd", "a.@b.cc", "a@b"]),
    (r"^(?=.{3,5}$)[a-z]+(-[a-z]+)*$", ["a-b", "abcde"], ["ab", "abcdef", "a--b"]),
    (r"^(?=.*[A-Z])(?=.*\d).{4,}$", ["xA1y", "1aaA"], ["A1", "AAAA", "aaa1"]),
    (r"a(?=b)", ["ab", "aab"], ["a", "ba", "ac"]),
    (r"a(?!b)", ["a", "aba", "ac"], ["ab", "b"]),
    (r"^(?:(?!--).)*$", ["a-b", "-"], ["a--b"]),
    (r"^(?:(?=[ab])\w)+(?!.)$", ["abba"], ["abc"]),
    (r"^(?!(?!a))a?b?$", ["a", "ab"], ["b", ""]),
    (r"^(?!.*(?:foo|bar)$)\w+$", ["food"], ["foo", "xbar"]),
    (r"^(?=a)*b$", ["b"], ["ab"]),
    (r"(?!x)", ["", "x"], []),
    # Look-behinds.
    (r"(?<=\$)\d", ["$5"], ["5$", "€5"]),
    (r"^\w+(?<!_)$", ["a_b"], ["ab_"]),
    (r"(?<!^)b", ["ab"], ["b", "ba"]),
    (r"(?<=^a+)b", ["aab"], ["cab", "b"]),
]


def accepts(language: Language, text: bytes) -> bool:
    return isinstance(language, Embedded) and language.dfa.accepts(text)


@pytest.mark.parametrize(("pattern", "found", "not_found"), ECMA)
def test_patterns_are_those_of_ecma_262(pattern: str, found: list[str], not_found: list[str]) -> None:
    in_json, in_text = search_language(pattern, json_string_character), search_language(pattern, utf8)
    for text in found + not_found:
        assert is_found(pattern, text) == (text in found), text
        assert accepts(in_text, text.encode()) == (text in found), text
        if not any(ord(each) < 0x20 and each not in "\b\f\n\r\t" for each in text):
            assert accepts(in_json, json.dumps(text, ensure_ascii=False)[1:-1].encode()) == (text in found), text


def random_pattern(rng: random.Random, depth: int, looks: bool) -> str:
    if depth == 0:
        return rng.choice(["a", "b", ".", "[ab]", "[^a]", r"\w", r"\W", *(["^", r"\b", r"\B"] if looks else [])])
    inner = random_pattern(rng, depth - 1, looks)
    match rng.randrange(7 if looks else 4):
        case 0 | 1:
            return inner + random_pattern(rng, depth - 1, looks)
        case 2:
            return f"(?:{inner}|{random_pattern(rng, depth - 1, looks)})"
        case 3:
            return f"(?:{inner}){rng.choice(['*', '+', '?', '*?', '{2}', '{1,2}'])}"
        case 4:
            return rng.choice([r"(?<=a)", r"(?<!b|-)"]) + inner
        case _:
            return f"(?{rng.choice('=!')}{inner}){random_pattern(rng, depth - 1, looks)}"


@pytest.mark.parametrize("looks", [False, True])
def test_random_patterns_are_found_where_re_finds_them(looks: bool) -> None:
    rng = random.Random(5)
    # Not in the empty text, where `re` finds no `\\B` before Python 3.14.
    texts = ["".join(word) for n in range(1, 4) for word in itertools.product("ab-", repeat=n)]
    met = set()
    for _ in range(50):
        pattern = random_pattern(rng, rng.choice((2, 3, 4)), looks)
        expected = [re.search(pattern, text, re.ASCII) is not None for text in texts]
        assert [is_found(pattern, text) for text in texts] == expected, pattern
        language = search_language(pattern, utf8)
        assert [accepts(language, text.encode()) for text in texts] == expected, pattern
        whole = pattern_language(pattern, utf8)
        assert [accepts(whole, text.encode()) for text in texts] == [
            re.fullmatch(pattern, text, re.ASCII) is not None for text in texts
        ], pattern
        met.add(tuple(expected))
    assert len(met) > 15


@pytest.mark.parametrize(
    ("pattern", "accepted", "others"),
    [
        # What both dialects match, in Python's spelling.
        (r"\w+|\W+", ["ab", "-"], ["é", "aé"]),
        (r"\D|\s", ["x", " "], ["٣", "\u00a0"]),
        (r"a{,2}", ["", "aa"], ["a{,2}"]),
        ("[]a]+", ["]a"], ["b"]),
        ("[^]a]", ["b"], ["]", "a"]),
        (r"(?i)yes|no", ["YES", "No"], ["nope"]),
        (r".*\bcat\b.*", ["a cat.", "cat"], ["cats", "écat"]),
        (r"(?=.*\d)[a-z\d]{3}", ["a1b"], ["abc"]),
        (r"(?m)a$\nb", ["a\nb"], ["ab"]),
    ],
)
def test_a_whole_reply_is_matched_in_both_dialects(pattern: str, accepted: list[str], others: list[str]) -> None:
    dfa = regex_language(pattern)
    for text in accepted + others:
        assert dfa.accepts(text.encode()) == (text in accepted), text
    for sample in random_texts(dfa, 50, soft_length=20):
        assert re.fullmatch(pattern, sample.decode()), sample


@pytest.mark.parametrize(
    "pattern",
    [
        "(", "a)", "[a", "*", "^*", r"\b+", "a**", "a{2}{3}", "{2}", "a{3,2}", "[b-a]", "\\", r"\x4", r"\u12",
        r"\p", r"\u{110000}", r"(a)\2", "(?<1>a)", "(?<a>x)(?<a>y)", "(?P<a", "(?i)*",
    ],
)  # fmt: skip
def test_what_is_no_pattern_makes_a_schema_invalid(pattern: str) -> None:
    with pytest.raises(ConstraintError, match=r"The schema is invalid at \$.* regular expression|unknown kind"):
        compile_schema({"type": "string", "pattern": pattern})


@pytest.mark.parametrize(
    ("pattern", "cause"),
    [
        (r"(a)\1", "back-reference"),
        (r"(?<x>a)\k<x>", "back-reference"),
        (r"\p{Script=Latin}", "no general category"),
        (r"(?<=a(?=b))", "inside a look-behind"),
        ("a++", "possessive"),
        ("(?x)a", "the flag x"),
        (r"\i\c*", r"the escape \\i"),
    ],
)
def test_what_is_refused_is_no_invalid_schema(pattern: str, cause: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}, "required": ["a"]}
    with pytest.raises(ConstraintError, match=rf"keyword pattern at \$\.a can't be guaranteed: .*{cause}"):
        compile_schema(schema)
    with pytest.raises(ConstraintError, match=cause):
        compile_schema({"enum": ["a", "b"], "not": {"pattern": pattern}})
    # Where nothing is a string it makes no difference.
    compile_schema({"type": "integer", "pattern": pattern})


@pytest.mark.parametrize(
    ("schema", "writable", "others"),
    [
        (
            {"anyOf": [{"type": "number"}, {"type": "string", "pattern": DECIMAL}]},
            [19.99, "19.99", "-1"],
            [True, "", "1e5"],
        ),
        ({"type": "string", "pattern": EMAIL, "maxLength": 20}, ["a.b@example.org"], ["a..b@example.org"]),
        ({"type": "string", "pattern": r"^\D+$"}, ["José Müller", "日本"], ["a1"]),
        (
            {"type": "object", "patternProperties": {r"^\p{Lu}": {"type": "null"}}, "additionalProperties": False},
            [{}, {"Élan": None}],
            [{"élan": None}, {"Élan": 1}],
        ),
        (
            {"type": "object", "patternProperties": {"": {"type": "null"}}, "additionalProperties": False},
            [{"": None, "x": None}],
            [{"x": 1}],
        ),
        (
            {
                "type": "object",
                "properties": {"b": {"type": "null"}, "aa!": {"type": "null"}},
                "patternProperties": {"^(a+)+$": {"type": "null"}},
                "required": ["aaa"],
                "unevaluatedProperties": False,
            },
            [{"b": None, "aa!": None, "aaa": None}],
            [{"b": None}, {"aaa": 1}],
        ),
    ],
)
def test_schemas_with_patterns(schema: dict[str, Any], writable: list[Any], others: list[Any]) -> None:
    compiled = compile_schema(schema)
    for document in writable + others:
        assert compiled.validator.is_valid(document) == (document in writable), document
        text = json.dumps(document, ensure_ascii=False).encode()
        assert compiled.dfa.accepts(text) == (document in writable), document
    for sample in random_texts(compiled.dfa, 30):
        assert compiled.validator.is_valid(json.loads(sample)), sample
