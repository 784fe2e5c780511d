"""In which columns a terminal's cursor may be: `test_screen.py` and `tests.attacks terminals` ask a terminal."""

from __future__ import annotations

import pytest

from llm_diffusiongemma.view.cursor import Cursor

WIDTH = 10
ANYWHERE: set[int] = set()


def columns(*texts: str, width: int = WIDTH) -> set[int]:
    cursor = Cursor()
    for text in texts:
        cursor.printed(text, width)
    return set(cursor.columns(width))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {0}),
        ("abc", {3}),
        ("a" * 9, {9}),
        ("a" * 10, {10}),  # a wrap to come
        ("a" * 11, {1}),
        ("a" * 20, {10}),
        ("a" * 10 + "\n", {0}),
        ("a" * 10 + "\n\nbc", {2}),
        ("abc\rd", {1}),
        ("a\tb", {9}),
        ("a\t\tb", {10}),
        ("é" * 10, {10}),
        ("漢字", {4}),
        ("a" + "漢" * 4, {9}),
        ("a" + "漢" * 5, {2}),  # the last one has no room
        ("漢" * 5, {10}),
        ("שלום", {4}),
        ("😀", {1, 2}),  # by the terminal, and by its age
        ("❤\ufe0f", {1, 2, 3}),
        ("👩\u200d💻", {1, 2, 3, 4, 5}),
        ("a\u200dbc", {2, 3, 4}),
        ("🇩🇪a", {1, 2, 3, 4, 5}),
        ("क्ष", {1, 2, 3}),
        ("e\u0301", {1, 2}),
        ("a" * 9 + "😀", {10, 2}),
        ("\x1b[3Cabc", ANYWHERE),
        ("a\bb", ANYWHERE),
        ("\x9b3C", ANYWHERE),
    ],
)
def test_behind_a_text(text: str, expected: set[int]) -> None:
    assert columns(text) == expected
    assert columns(*text) == expected


def test_where_it_may_be_anywhere_nobody_follows_it_further() -> None:
    """In a wide terminal it might take seconds for each canvas."""
    assert columns("☃" * 1000, width=5000) == columns("☃" * 100, "a", width=5000) == ANYWHERE
    assert columns("☃" * 1000, "\nab", width=5000) == {2}


def test_where_it_is_lost_only_a_new_line_helps() -> None:
    cursor = Cursor()
    cursor.printed("\x1b[2A", WIDTH)
    cursor.printed("ab\ncd", WIDTH)
    assert not cursor.columns(WIDTH)
    cursor.begin_line()
    assert cursor.columns(WIDTH) == {0}


@pytest.mark.parametrize("half", ["👩\u200d", "क्", "🇩"])
def test_between_what_is_joined_it_must_not_be_moved(half: str) -> None:
    assert not columns("ab" + half)
    assert columns("ab" + half + "c")


def test_lines_are_broken_anew_or_cut() -> None:
    cursor = Cursor()
    cursor.printed("\nabcdefgh", WIDTH)
    assert cursor.columns(5) == {3, 4}
    cursor.printed("ij", 5)
    assert cursor.columns(5) == {5, 1}
    assert cursor.columns(20) == {10, 5, 1}


def test_east_asian_terminals_may_be_wider(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_diffusiongemma.view import cursor

    cursor._cells.cache_clear()
    monkeypatch.setenv("LC_ALL", "ja_JP.UTF-8")
    assert columns("α") == {1, 2}
    cursor._cells.cache_clear()
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert columns("α") == {1}
    cursor._cells.cache_clear()
