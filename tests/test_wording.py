"""What is quoted from outside can't be obeyed by a terminal."""

from __future__ import annotations

import pytest

from llm_diffusiongemma.errors import CheckpointError
from llm_diffusiongemma.wording import printable, quoted, tell, told_to


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model-00001.safetensors", "model-00001.safetensors"),
        ("naïve 日本語 👩‍🔬", "naïve 日本語 👩‍🔬"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\x1b]52;c;cm0gLXJm\x07", "\\x1b]52;c;cm0gLXJm\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("a\u2066b\u2069\ufeff", "a\\u2066b\\u2069\\ufeff"),
        ("a\tb\rc\x08", "a\\tb c\\x08"),
        ("one\n\n  two\u2028three", "one two three"),
        (" \n one \n \t \n two  three\n", "one two  three"),
        ("half \ud800", "half \\ud800"),
        ("\U000e0041", "\\U000e0041"),
        (ValueError("line\nError: forged"), "line Error: forged"),
    ],
)
def test_quoted(text: object, expected: str) -> None:
    assert quoted(text) == expected


def test_quoted_is_not_long() -> None:
    assert quoted("a" * 500) == "a" * 500
    assert quoted("a" * 501) == "a" * 499 + "…"
    assert len(quoted("\x1b" * 10**7)) == 500


def test_quoting_takes_no_longer_than_the_text_is() -> None:
    """A million blanks in a request to the server kept it for hours."""
    assert quoted("a" + " " * 10**6 + "b") == "a" + " " * 498 + "…"


def test_a_sentence_keeps_its_lines() -> None:
    assert printable("one\ntwo\x1b") == "one\ntwo\\x1b"


def test_what_is_shown_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    """Even if who wrote the sentence has forgotten to quote."""
    assert str(CheckpointError("no \x1b[31mred")) == "no \\x1b[31mred"
    assert CheckpointError("no \x1b[31mred").message == "no \\x1b[31mred"
    tell("no \x1b[31mred")
    assert capsys.readouterr() == ("", "no \\x1b[31mred\n")


def test_who_listens_is_told_in_place_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []
    with told_to(heard.append):
        tell("no \x1b[31mred")
    assert heard == ["no \\x1b[31mred"]
    tell("once more")
    assert capsys.readouterr() == ("", "once more\n")
