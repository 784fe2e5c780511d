"""Texts with blanks: what is refused, their languages against a reader without automata, and reading back."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_diffusiongemma.errors import ConstraintError
from llm_diffusiongemma.grammar.blanks import MARKS, TELLING, Blank, BlankText, parse_blanks
from llm_diffusiongemma.grammar.characters import WHITE_SPACE
from llm_diffusiongemma.grammar.samples import random_texts
from tests.grammar.walks import check_promises

LETTER = "Dear {name},\n\nthank you for {what}. {closing...}\n\nYours sincerely,\nAda\n"


def test_what_a_text_is_made_of() -> None:
    assert parse_blanks("{{{x}}}, {long one...} {Größe_2-b}!") == BlankText(
        ("{", "}, ", " ", "!"), (Blank("x", False), Blank("long one", True), Blank("Größe_2-b", False))
    )
    assert str(parse_blanks('{{"a": {x}, {y...}}}')) == '{"a": {x}, {y...}}'


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (
            "Dear Ms. Lovelace,\n\nthank you for the pears. They were\n\n\tgood.\n\nYours sincerely,\nAda\n",
            {"name": "Ms. Lovelace", "what": "the pears", "closing": "They were\n\n\tgood."},
        ),
        # The first place counts: so says the language, too.
        (
            "Dear A,\n\nthank you for b. c. d\n\nYours sincerely,\nAda\n",
            {"name": "A", "what": "b", "closing": "c. d"},
        ),
        ("Dear A,\n\nthank you for b. c\n\nYours sincerely, d\n\nYours sincerely,\nAda\n", None),
        ("Dear A\nB,\n\nthank you for b. c\n\nYours sincerely,\nAda\n", None),
        ("Dear A,,\n\nthank you for b. c\n\nYours sincerely,\nAda\n", None),
        ("Dear ,\n\nthank you for b. c\n\nYours sincerely,\nAda\n", None),
        ("Dear A ,\n\nthank you for b. c\n\nYours sincerely,\nAda\n", None),
        ("Dear A,\n\nthank you for b.  c\n\nYours sincerely,\nAda\n", None),
        ("Dear A,\n\nthank you for b. c\x1b\n\nYours sincerely,\nAda\n", None),
        ("Dear A,\n\nthank you for b. c\n\nYours sincerely,\nAda", None),
        ("", None),
    ],
)
def test_reading_a_letter(text: str, values: dict[str, str] | None) -> None:
    letter = parse_blanks(LETTER)
    assert letter.read(text) == values
    assert letter.language().accepts(text.encode()) == (values is not None)


@pytest.mark.parametrize(
    ("text", "filled", "values"),
    [
        ("It costs {price}.", "It costs 3.50.", {"price": "3.50"}),
        ("It costs {price}.", "It costs 3.50..", None),
        ("{a} {b}", "one two three", {"a": "one", "b": "two three"}),
        ("{a}é{b...}", "日é本\né", {"a": "日", "b": "本\né"}),
        ("({x})", "(f(x))", {"x": "f(x)"}),
        (f"{{a}}{'b' * (TELLING - 1)}", f"a{'b' * TELLING}", {"a": "ab"}),
        (f"{{a}}{'b' * TELLING}", f"a{'b' * (TELLING + 1)}", None),
        ("{x}", "a\u2028b", None),
        ("{x}", "a\tb", None),
        ("{x}", "\ufeffa", None),
        ("{x...}", "a\x85b", None),
        # What comes at once can't be told from the end: a blank has a character at least.
        ("{a}, {b}", ", , x", None),
        ("{a}nana{b}", "bananana!", {"a": "ba", "b": "na!"}),
        # What may have been its beginning wasn't, but a later part of that is.
        ("{a}aab{b}", "xaaab!", {"a": "xa", "b": "!"}),
        (f"{{a}}{'ab' * TELLING}c{{b}}", f"x{'ab' * TELLING}c!", {"a": "x", "b": "!"}),
        # It has begun to end: there is no way back.
        (f"{{a}}{'ab' * TELLING}c{{b}}", f"x{'ab' * (TELLING + 1)}c!", None),
    ],
)
def test_where_a_blank_ends(text: str, filled: str, values: dict[str, str] | None) -> None:
    blanks = parse_blanks(text)
    assert blanks.read(filled) == values
    assert blanks.language().accepts(filled.encode()) == (values is not None)


literals = st.text("ab. \n{}é", max_size=3) | st.text("ab", min_size=TELLING - 1, max_size=TELLING + 2)
values = st.text("ab. \né", min_size=1, max_size=6)


@st.composite
def fillings(draw: st.DrawFn) -> tuple[str, str]:
    """A text with blanks, and one that fills it, or nearly."""
    number = draw(st.integers(1, 3))
    text = filled = ""
    for at in range(number + 1):
        literal = draw(literals)
        if 0 < at < number:
            literal = literal or "a"
        text += literal.replace("{", "{{").replace("}", "}}")
        filled += literal
        if at < number:
            text += f"{{x{at}{draw(st.sampled_from(('', '...')))}}}"
            filled += draw(values)
    return text, filled


def brute_force(blanks: BlankText, text: str) -> dict[str, str] | None:
    """What a regular expression makes of it, which tries the shortest for each blank in turn."""
    pattern = re.escape(blanks.literals[0])
    for number, blank in enumerate(blanks.blanks):
        behind = blanks.literals[number + 1]
        is_open = number + 1 == len(blanks.blanks) and len(behind) < TELLING
        telling = rf"(?!{re.escape(behind[:TELLING])})" if not is_open else ""
        inside = r"[^\x00-\x08\x0b-\x1f\x7f-\x9f]" if blank.is_long else r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]"
        last = rf"(?<![{behind[0]}])" if behind and behind[0] in MARKS else ""
        pattern += rf"((?!\s)(?:{telling}{inside})+(?<!\s){last})" + re.escape(behind)
    found = re.fullmatch(pattern, text)
    return found and dict(zip([blank.name for blank in blanks.blanks], found.groups(), strict=True))


@given(fillings(), st.data())
@settings(max_examples=30, deadline=None)
def test_a_language_is_what_can_be_read_back(drawn: tuple[str, str], data: st.DataObject) -> None:
    text, filled = drawn
    blanks = parse_blanks(text)
    language = blanks.language()
    check_promises(language)
    at = data.draw(st.integers(0, len(filled)))
    changed = filled[:at] + data.draw(st.sampled_from(["", "a", " ", "\n", "b."])) + filled[at + 1 :]
    for tried in (filled, changed):
        expected = brute_force(blanks, tried)
        assert blanks.read(tried) == expected, (text, tried)
        assert language.accepts(tried.encode()) == (expected is not None), (text, tried)
    for some in random_texts(language, 3, soft_length=20):
        assert blanks.read(some.decode()) is not None, (text, some)


def test_white_space_is_what_python_takes_for_it_and_the_byte_order_mark() -> None:
    spaces = {point for first, last in WHITE_SPACE for point in range(first, last + 1)}
    assert spaces == {point for point in range(0x110000) if chr(point).isspace()} | {0xFEFF}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "has no blank"),
        ("{{name}}", "has no blank"),
        ("Dear {name", r"character 6 \('\{name'\).*isn't closed"),
        ("Dear\n{na{me}", r"line 2, character 1 .*another one before it is closed"),
        ("Dear name},", r"character 10 .*none has opened"),
        ("{a}{b}", r"character 4 .*between the blanks \{a\} and \{b\}"),
        ("{a} or\n{a...}", r"line 2, character 1 .*\{a\} is there a second time .*line 1, character 1"),
        *((f"Dear {braces}", "character 6 .*no blank") for braces in ("{}", "{...}", "{ x }", "{x..}", "{x.y}")),
        ('{"name": "{name}"}', "character 1 .*another one .*as those of JSON, are written twice: {{ and }}"),
        ("caf\udce9 {x}", r"character 4 .*UTF-8"),
        ("{x}" + "a" * 66_000, "65,536 states"),
        ("a" * 66_000 + "{x}", "65,536 states"),
        ("{{" * 600_000, "has no blank"),
        (",".join(f"{{a{number}}}" for number in range(40_000)), "65,536 states"),
    ],
)
def test_what_is_refused(text: str, cause: str) -> None:
    started = time.process_time()
    with pytest.raises(ConstraintError, match=cause):
        parse_blanks(text).language()
    assert time.process_time() - started < 2


def test_an_automaton_is_as_long_as_its_text() -> None:
    """Each of ten gaps could be anywhere in what follows it, if blanks had no first end."""
    text = "".join(f"{number} is {{a{number}...}} and " for number in range(10))
    assert len(parse_blanks(text).language().accepting) < len(text) + 10 * 50
