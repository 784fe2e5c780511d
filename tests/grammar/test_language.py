"""Regular languages against brute force, regular expressions against `re`."""

from __future__ import annotations

import itertools
import random
import re
import time

import numpy as np
import pytest

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar import language as languages
from llm_diffusiongemma.grammar import minimal
from llm_diffusiongemma.grammar.characters import json_string_character, utf8
from llm_diffusiongemma.grammar.dfa import ByteDFA
from llm_diffusiongemma.grammar.language import (
    ALL_BYTES,
    MAX_STATES,
    NOTHING,
    Language,
    Literal,
    OneByte,
    Repetition,
    Separated,
    StateLimitError,
    byte_set,
    concatenate,
    difference,
    embed,
    estimated_states,
    intersection,
    minimal_dfa,
    optional,
    same_language,
    unite,
)
from llm_diffusiongemma.grammar.pattern import choices_language, regex_language, search_language
from llm_diffusiongemma.grammar.samples import random_texts
from llm_diffusiongemma.grammar.scalars import quoted
from tests.grammar.walks import check_promises

ENDS = [(b"a", b"\x00"), (b"b", b"\x01")]


def words(alphabet: bytes, longest: int) -> list[bytes]:
    return [bytes(word) for n in range(longest + 1) for word in itertools.product(alphabet, repeat=n)]


def random_regex(rng: random.Random, depth: int, anchors: bool) -> str:
    if depth == 0:
        return rng.choice(["a", "b", ".", "[ab]", "[^a]", *(["^", "$"] if anchors else [])])
    inner = random_regex(rng, depth - 1, anchors)
    match rng.randrange(5):
        case 0:
            return inner + random_regex(rng, depth - 1, anchors)
        case 1:
            return f"(?:{inner}|{random_regex(rng, depth - 1, anchors)})"
        case 2:
            return f"(?:{inner}){rng.choice(['*', '+', '?', '*?'])}"
        case 3:
            low = rng.randrange(3)
            return f"(?:{inner}){rng.choice([f'{{{low}}}', f'{{{low},}}', f'{{{low},{low + 2}}}'])}"
        case _:
            return inner


def expression(rng: random.Random, depth: int) -> tuple[Language, str]:
    """A random language and the regular expression that says the same."""
    if depth == 0:
        return rng.choice(
            [(Literal(b"ab"), "ab"), (OneByte(byte_set(b"ab")), "[ab]"), (Literal(b"a"), "a"), (Literal(b""), "")]
        )
    (one, first), (two, second) = expression(rng, depth - 1), expression(rng, depth - 1)
    low, extra = rng.randrange(3), rng.choice([0, 2, None])
    high = None if extra is None else low + extra
    return rng.choice(
        [
            (concatenate(one, two), first + second),
            (unite([one, two]), f"(?:{first}|{second})"),
            (optional(one), f"(?:{first})?"),
            (Repetition(one, low, high), f"(?:{first}){{{low},{'' if high is None else high}}}"),
            (embed(minimal_dfa(one)), first),
        ]
    )


def test_expressions_are_what_they_say_and_their_automata_minimal() -> None:
    rng = random.Random(1)
    for _ in range(60):
        language, pattern = expression(rng, 3)
        dfa = minimal_dfa(language)
        check_promises(dfa)
        for word in words(b"ab", 6):
            assert dfa.accepts(word) == bool(re.fullmatch(pattern.encode(), word)), pattern


def test_intersection() -> None:
    rng = random.Random(2)
    for _ in range(25):
        (first, one), (second, two) = expression(rng, 3), expression(rng, 3)
        both = intersection(minimal_dfa(first), minimal_dfa(second))
        check_promises(both)
        for word in words(b"ab", 5):
            matches = [bool(re.fullmatch(pattern.encode(), word)) for pattern in (one, two)]
            assert both.accepts(word) == all(matches)


def test_difference() -> None:
    rng = random.Random(4)
    for _ in range(25):
        (first, one), (second, two) = expression(rng, 3), expression(rng, 3)
        rest = difference(minimal_dfa(first), minimal_dfa(second))
        check_promises(rest)
        for word in words(b"ab", 5):
            expected = re.fullmatch(one.encode(), word) and not re.fullmatch(two.encode(), word)
            assert rest.accepts(word) == bool(expected)


def test_loops_and_embedded_automata_in_each_other() -> None:
    """Against the same expression with nothing embedded: one automaton, number for number."""
    rng = random.Random(5)
    for _ in range(30):
        (one, _), (two, _) = expression(rng, 2), expression(rng, 2)
        whole = []
        for each in (embed(minimal_dfa(unite([one, two]))), unite([one, two])):
            loop = Repetition(concatenate(each, optional(two), each), 0, None)
            whole.append(minimal_dfa(concatenate(optional(loop), one, loop)))
        check_promises(whole[0])
        assert same_language(*map(embed, whole))


def test_how_often_states_are_settled_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """What refinement alone finds in a round for each byte, and what `_settle` finds."""
    words = [regex_language(f"(?:a+b){{0,{count}}}c?[ab]?") for count in (9, 12)]
    languages = [concatenate(*map(embed, words)), unite([concatenate(*map(embed, words)), Literal(b"aab")])]
    found = []
    for least in (0, 10**9):
        monkeypatch.setattr(minimal, "_ROUNDS_TO_SETTLE", least)
        monkeypatch.setattr(minimal, "_STATES_OF_ROUND", 1 if least else 10**6)
        found.append([minimal_dfa(language) for language in languages])
    for dfas in zip(*found, strict=True):
        check_promises(dfas[0])
        assert same_language(*map(embed, dfas))


def test_quotes_around_an_automaton() -> None:
    """Number for number what is made of the expression; a quote in the content stands behind a backslash."""
    for pattern in ('^"*$', "^(?:a|b!){0,3}$", "x", "^$", "^[!#]? *$", '^"$', "(?=.*a)(?=.*b)", "^[^a]{2,}$"):
        content = minimal_dfa(search_language(pattern, json_string_character))
        quote = Literal(b'"')
        expected = minimal_dfa(concatenate(quote, embed(content), quote))
        assert same_language(embed(quoted(content)), embed(expected)), pattern


def test_rows_say_what_the_moves_do() -> None:
    dfa = regex_language(r"(?:é|[a-f]{2,3}|\W)*x")
    for state in range(dfa.dead):
        row = np.full(256, dfa.dead)
        for mask, target in dfa.rows[state]:
            row[[byte for byte in range(256) if mask >> byte & 1]] = target
        assert (row == dfa.transitions[state]).all()
        assert len({target for _, target in dfa.rows[state]}) == len(dfa.rows[state])


def test_an_estimate_of_states_is_no_less_than_they_are() -> None:
    rng = random.Random(6)
    for _ in range(50):
        language, pattern = expression(rng, 3)
        # Where bytes are counted and sets are not disjoint, subsets may be more.
        if "," not in pattern:
            assert minimal_dfa(language).dead <= estimated_states(language) + 1, pattern
    counter = Repetition(utf8(((0, 0x10FFFF),)), 0, 100)
    assert estimated_states(counter) == 100 * minimal_dfa(utf8(((0, 0x10FFFF),))).dead


def test_a_long_counter_is_built_soon() -> None:
    """Its states differ from each other by what is thousands of bytes away."""
    character = utf8(((0, 0x10FFFF),))
    words = [concatenate(Literal(start), Repetition(character, 0, 3500), Literal(end)) for start, end in ENDS]
    start = time.process_time()
    dfa = minimal_dfa(unite(words))
    assert time.process_time() - start < 3
    assert 50_000 < dfa.dead < MAX_STATES
    for text in ("a" + "é" * 3500 + "\x00", "b" + "x" * 7 + "\x01"):
        assert dfa.accepts(text.encode())
    for text in ("a" + "é" * 3502 + "\x00", "b" + "x" * 7 + "\x02"):
        assert not dfa.accepts(text.encode())


@pytest.mark.parametrize("seed", range(20))
def test_separated_parts(seed: int) -> None:
    rng = random.Random(seed)
    required = [rng.random() < 0.4 for _ in range(rng.randrange(5))]
    parts = tuple((Literal(b"%d" % number), needed) for number, needed in enumerate(required))
    minimum = rng.randrange(3)
    maximum = rng.choice([None, minimum, minimum + 2])
    rest = rng.choice([None, Literal(b"r")])
    dfa = minimal_dfa(Separated(parts, rest, Literal(b","), minimum, maximum))
    check_promises(dfa)
    expected = set()
    for chosen in itertools.product(*([True] if needed else [True, False] for needed in required)):
        for repeats in range(5 if rest else 1):
            names = [str(number) for number, there in enumerate(chosen) if there] + ["r"] * repeats
            if minimum <= len(names) <= (99 if maximum is None else maximum):
                expected.add(",".join(names).encode())
    tried = {",".join(names) for n in range(5) for names in itertools.product([*"0123r"], repeat=n)}
    assert {text for text in (name.encode() for name in tried) if dfa.accepts(text)} == {
        text for text in expected if text.count(b",") < 4
    }


def test_nothing_has_one_dead_state() -> None:
    for language in (NOTHING, concatenate(Literal(b"a"), NOTHING), Repetition(NOTHING, 1, None)):
        dfa = minimal_dfa(language)
        assert len(dfa.accepting) == 1
        assert not dfa.accepts(b"")
    assert minimal_dfa(Repetition(NOTHING, 0, None)).accepts(b"")


def test_a_product_may_take_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each pair that is met: the moves of one, by those of the other and one."""
    chain, loop = minimal_dfa(Literal(b"a" * 100)), minimal_dfa(Repetition(OneByte(ALL_BYTES), 0, None))
    monkeypatch.setattr(languages, "MAX_SET_SIZES", 200)
    assert intersection(chain, loop).dead == 101
    monkeypatch.setattr(languages, "MAX_SET_SIZES", 199)
    with pytest.raises(StateLimitError):
        intersection(chain, loop)


def test_what_nothing_leads_to_is_left_out() -> None:
    """Of states that accept as well, whatever numbers they have."""
    rng = random.Random(0)
    for _ in range(300):
        states = rng.randint(2, 12)
        moves = np.array([[rng.randrange(states + 1) for _ in "ab"] for _ in range(states)] + [[states] * 2])
        byte_kind = np.array([min(abs(byte - ord("a")), 2) for byte in range(256)]) % 2
        accepting = np.array([rng.random() < 0.4 for _ in range(states)] + [False])
        one = ByteDFA.of(moves.astype(np.int32), byte_kind, accepting)
        other = minimal.minimised(one)
        if other.dead:
            check_promises(other)
        for length in range(4):
            for text in itertools.product(b"ab", repeat=length):
                assert other.accepts(bytes(text)) == one.accepts(bytes(text))


def test_a_language_too_large() -> None:
    with pytest.raises(StateLimitError):
        minimal_dfa(Literal(b"a" * (MAX_STATES + 1)))
    # Small as an expression; which of the last 20 bytes were an `a` takes 2^20 states to remember.
    with pytest.raises(StateLimitError):
        minimal_dfa(search_language("a[ab]{20}$", utf8))


@pytest.mark.parametrize("anchors", [False, True])
def test_random_regular_expressions(anchors: bool) -> None:
    rng = random.Random(3)
    texts = [word.decode() for word in words(b"ab", 4)]
    compared = 0
    for _ in range(60):
        pattern = random_regex(rng, 3, anchors)
        expected = [text for text in texts if re.fullmatch(pattern, text)]
        try:
            dfa = regex_language(pattern)
        except ConstraintError:
            assert not expected, pattern
            continue
        found = minimal_dfa(search_language(pattern, utf8))
        assert [text for text in texts if dfa.accepts(text.encode())] == expected, pattern
        assert [t for t in texts if found.accepts(t.encode())] == [t for t in texts if re.search(pattern, t)], (
            pattern
        )
        compared += 1
    assert compared > 25


REGEXES = [
    r"\d{4}-\d{2}-\d{2}",
    r"(?P<year>\d+)(?#comment)-?",
    r"[\w.-]+@[\w-]+\.[a-z]{2,}",
    r"\S+\s\D\W.",
    r"[^\W\d_]+",
    r"[^\w\s]{1,3}",
    r"[^\D]+|[\S]+",
    r"é[à-ü]|[^a-z]",
    r"[\U0001F600-\U0001F64F]+x?",
    "\\u00e9\\x41\\n\\t\\0[\\b]",
    r"[]a-]|[^]]|\]|a{|{x|a{,2}",
    r"\A(yes|no)\Z|^maybe$|",
    r"\$\d+(?:\.\d\d)?",
    r"[\u0000-\u00ff]{2}",
    r"[^\x00-\x7f]",
]


@pytest.mark.parametrize("pattern", REGEXES)
def test_texts_of_a_regular_expression_match(pattern: str) -> None:
    dfa = regex_language(pattern)
    check_promises(dfa)
    for text in random_texts(dfa, 50, soft_length=20):
        assert re.fullmatch(pattern, text.decode()), text


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r"\d{4}-\d{2}-\d{2}", ["2024-01-31"]),
        (r".+", ["é", "日本", "😀 \t", "\x00\x7f\x80߿ࠀ￿\U00010000\U0010ffff"]),
        (r"[^a]", ["b", "\n", "é", "\ud7ff", "\ue000", "\U0010ffff"]),
        (r"\S\D", ["éa", "#b"]),
        (r"(a|b)*?c", ["c", "abac"]),
    ],
)
def test_regular_expressions_accept(pattern: str, texts: list[str]) -> None:
    dfa = regex_language(pattern)
    for text in texts:
        assert dfa.accepts(text.encode()), text


@pytest.mark.parametrize(
    ("pattern", "cause"),
    [
        ("(?=a)b", "No text"),
        ("(?<=a(?!c))b", "look-around inside a look-behind"),
        (r"(?<=a\b)b", "inside a look-behind"),
        (r"(a)\1", "back-reference"),
        (r"(?P<x>a)(?P=x)", "back-reference"),
        ("(?>a)", "atomic group"),
        ("(a)?(?(1)b|c)", "conditional"),
        ("a++", "possessive"),
        (r"a\bword", "No text"),
        ("(?x)a", "the flag x"),
        (r"\p{Script=Latin}", "no general category"),
        (r"\h", r"the escape \\h"),
        ("a{,}", "some read as text"),
        ("(?:(?!ab|cd)[a-z]{0,30}){0,30}x", "states"),
        ("a{0,100000}", "100000"),
        ("a{99999999999999999999}", "counts up to"),
        ("((a{0,1000}){0,1000}){0,1000}", "65,536 states"),
        ("(a|b)*a(a|b){500}", "65,536 states"),
        ("(.*a){20}.{900}", "65,536 states"),
        ("a$b", "No text"),
        ("[^\\s\\S]", "No text"),
        ("\ud800", "No text"),
        ("(", "valid"),
        ("a)", "valid"),
        ("[a", "valid"),
        ("*", "valid"),
        ("a{3,2}", "valid"),
        ("[b-a]", "valid"),
        ("\\", "valid"),
        (r"\x4", "valid"),
        ("(" * 300 + ")" * 300, "groups"),
        ("a" * 20_000, "longer"),
        ("(?:a{1000}b){66}", "65,536 states"),
    ],
)
def test_regular_expressions_refused(pattern: str, cause: str) -> None:
    start = time.process_time()
    with pytest.raises(ConstraintError, match=cause) as caught:
        regex_language(pattern)
    assert time.process_time() - start < 2
    assert len(str(caught.value)) < 300


def test_choices() -> None:
    dfa = choices_language(["yes", "no", "non", "ünsure"])
    check_promises(dfa)
    assert [text for text in ("yes", "no", "non", "ünsure", "n", "yesno", "") if dfa.accepts(text.encode())] == [
        "yes",
        "no",
        "non",
        "ünsure",
    ]


@pytest.mark.parametrize(
    ("choices", "cause"),
    [
        ([], "no choices"),
        (["yes", ""], "empty"),
        (["yes", "no", "yes"], "'yes' is there twice"),
        (["\ud800"], "surrogate"),
        (["x" * 200_000], "100,000 characters"),
        ([f"{number**40:090}"[:90] for number in range(1, 1100)], "65,536 states"),
    ],
)
def test_choices_refused(choices: list[str], cause: str) -> None:
    with pytest.raises(ConstraintError, match=cause):
        choices_language(choices)
