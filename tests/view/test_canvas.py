"""A canvas's lines, without a terminal."""

from __future__ import annotations

import io
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment, Segments

from llm_diffusiongemma.view.canvas import TAB_CELLS, Canvas
from llm_diffusiongemma.view.records import ACCEPTED, CALL, CONTROL, NOISE, SETTLED, TEXT, THOUGHT, Snapshot
from llm_diffusiongemma.wording import OBEYED


def snapshot(*pieces: str, kinds: str = "", states: str = "", **values: Any) -> Snapshot:
    """Settled text, where nothing else is said."""
    return Snapshot(
        pieces=pieces,
        kinds=kinds or TEXT * len(pieces),
        states=states or SETTLED * len(pieces),
        **{
            "attempt": 0,
            "block": 0,
            "step": 1,
            "max_steps": 48,
            "end": None,
            "mean_entropy": 0.5,
            "tokens_before": 0,
            "seconds": 1.0,
        }
        | values,
    )


def console(width: int = 80, height: int = 24, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(
        file=file, force_terminal=True, color_system="standard", width=width, height=height, legacy_windows=False
    )


def lines(*seen: Snapshot, hides_thoughts: bool = False, **size: Any) -> list[list[Segment]]:
    canvas = Canvas(hides_thoughts=hides_thoughts)
    for each in seen:
        canvas.see(each)
    return canvas.lines(console(**size))


def texts(*seen: Snapshot, **how: Any) -> list[str]:
    return ["".join(segment.text for segment in line) for line in lines(*seen, **how)]


def text(*seen: Snapshot, **how: Any) -> list[str]:
    """The canvas without the status line."""
    return texts(*seen, **how)[:-1]


def styled(seen: Snapshot, **how: Any) -> list[tuple[str, str]]:
    return [(segment.text, str(segment.style)) for line in lines(seen, **how)[:-1] for segment in line]


def test_each_state_has_its_look() -> None:
    seen = snapshot("One", " two", " three", " four", states=SETTLED + ACCEPTED * 2 + NOISE)
    assert styled(seen) == [("One", "none"), (" two three", "bold"), (" four", "dim")]


def test_without_colours_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    target = console()
    canvas = Canvas()
    canvas.see(snapshot("yes", "no", states=ACCEPTED + NOISE))
    target.print(Segments(canvas.lines(target)[0]))
    target.file.flush()
    assert target.file.buffer.getvalue() == b"\x1b[1myes\x1b[0m\x1b[2mno\x1b[0m"  # type: ignore[attr-defined]


def test_what_is_behind_the_end_is_not_shown() -> None:
    assert text(snapshot("Yes", ".", "<eos>", "garbage", end=2)) == ["Yes."]
    assert texts(snapshot("<eos>", "garbage", end=0)) == ["canvas 1 · step 1 of 48 · 100 % settled"]


def test_lines_end_where_the_terminal_s_end() -> None:
    assert text(snapshot("abcdef", "ghij", "kl"), width=5) == ["abcde", "fghij", "kl"]
    # Exactly full, and then a line's end.
    assert text(snapshot("abcde", "\n", "f\ng"), width=5) == ["abcde", "f", "g"]
    assert text(snapshot("a", "\n\n", "b", "\n")) == ["a", "", "b"]


def test_noise_breaks_no_lines() -> None:
    seen = snapshot("a", "\n", "b\n", "\n", "c", states=SETTLED + NOISE * 2 + ACCEPTED + SETTLED)
    assert text(seen) == ["a↵b↵", "c"]


def test_wide_characters_are_never_cut() -> None:
    assert text(snapshot("a中文"), width=4) == ["a中", "文"]
    assert text(snapshot("中a"), width=1) == ["·", "a"]


def test_tabs_are_blanks() -> None:
    assert text(snapshot("ab\tc\t\td")) == ["ab".ljust(TAB_CELLS) + "c".ljust(2 * TAB_CELLS) + "d"]
    assert text(snapshot("abc\t\td"), width=5) == ["abc  ", "d"]


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        ("\x1b[2J", "·[2J"),
        ("\x07\x9b1m", "··1m"),
        ("one\r\ntwo", "one|two"),
        ("\u202eevil\u202c", "evil"),
        ("\u200fשלום", "שלום"),
        ("👩\u200d👧", "👩👧"),
        ("\ue000\u2028\ud800", "···"),
        ("\u0301e\u0301", " \u0301e\u0301"),
        ("\ufffd", "\ufffd"),
    ],
)
def test_nothing_that_a_terminal_obeys(piece: str, shown: str) -> None:
    assert "|".join(text(snapshot(piece))) == shown


def test_what_belongs_together_may_be_cut_by_positions() -> None:
    assert text(snapshot("", "", "👩", "\u200d", "👧", "e", "\u0301")) == ["👩👧e\u0301"]


def test_a_thought_and_its_edges() -> None:
    seen = snapshot(
        "<|channel>", "thought\n", "Hm", "<channel|>", "Yes", kinds=CONTROL + THOUGHT * 2 + CONTROL + TEXT
    )
    assert text(seen) == ["‹thought", "Hm›Yes"]
    assert styled(seen) == [
        ("‹", "dim"),
        ("thought", "italic"),
        ("Hm", "italic"),
        ("›", "dim"),
        ("Yes", "none"),
    ]


def test_a_thought_that_is_not_to_be_seen() -> None:
    seen = snapshot(
        *("<|channel>", "thought\n", "", "secret\n", "<channel|>", "Yes"),
        kinds=CONTROL + THOUGHT * 3 + CONTROL + TEXT,
        states=SETTLED * 2 + ACCEPTED + NOISE + SETTLED * 2,
    )
    assert text(seen, hides_thoughts=True) == ["‹···›Yes"]
    assert [style for _, style in styled(seen, hides_thoughts=True)] == (
        ["dim", "italic", "bold italic", "dim italic", "dim", "none"]
    )


def test_a_call_and_other_control_tokens() -> None:
    seen = snapshot(
        *("<|tool_call>", "call:add{a:", '<|"|>', "1", '<|"|>', "}", "<tool_call|>", "<pad>", "<turn|>"),
        kinds="".join((CONTROL, CALL, CONTROL, CALL, CONTROL, CALL, CONTROL * 3)),
    )
    assert text(seen) == ['‹call:add{a:"1"}›··']


def test_of_too_many_lines_those_that_are_not_settled() -> None:
    def shown(states: str) -> str:
        seen = snapshot(*(f"{number}\n" for number in range(9)), states=states)
        return "".join(text(seen, height=5))

    assert shown(NOISE + SETTLED * 8) == "0↵1234"
    assert shown(SETTLED * 4 + ACCEPTED + SETTLED * 4) == "3456"
    assert shown(SETTLED * 8 + ACCEPTED) == "5678"
    assert shown(SETTLED * 9) == "5678"


@pytest.mark.parametrize("height", [1, 2])
def test_a_very_low_terminal(height: int) -> None:
    shown = texts(snapshot("a\n", "b\n", "c", states=SETTLED + ACCEPTED + SETTLED), height=height)
    assert shown == (["b"] if height == 2 else []) + ["canvas 1 · step 1 of 48 · 66 % settled"]


def test_how_far_it_is() -> None:
    def status(*seen: Snapshot, width: int = 80) -> str:
        return texts(*seen, width=width)[-1]

    states = SETTLED * 2 + ACCEPTED
    first = snapshot("a", "b", "c", states=states, step=7, seconds=2.0)
    assert status(first) == "canvas 1 · step 7 of 48 · 66 % settled"
    assert status(first, snapshot("a", redrawn=1)) == "canvas 1, draw 2 · step 1 of 48 · 100 % settled"
    second = snapshot("d", block=1, tokens_before=500, seconds=2.9)
    assert status(first, second) == "canvas 2 · step 1 of 48 · 100 % settled · 250 tokens/s"
    # The rate of whole canvases: it doesn't fall while one is at work.
    assert status(first, second, snapshot("d", block=1, tokens_before=500, seconds=9.0)).endswith(" 250 tokens/s")
    # Another attempt writes the reply anew.
    again = snapshot("e", attempt=1, seconds=10.0)
    assert status(first, second, again) == "canvas 1 · step 1 of 48 · 100 % settled"
    later = snapshot("f", attempt=1, block=1, tokens_before=100, seconds=11.0)
    assert status(first, snapshot("e", attempt=1, seconds=4.0), later).endswith(" 50 tokens/s")


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (52, "canvas 2 · step 1 of 48 · 100 % settled"),
        (38, "canvas 2 · step 1 of 48"),
        (10, "canvas 2"),
        (5, "canva"),
    ],
)
def test_how_far_it_is_where_little_fits(width: int, shown: str) -> None:
    seen = snapshot("a", seconds=2.0), snapshot("b", block=1, tokens_before=100, seconds=2.5)
    assert texts(*seen, width=width)[-1] == shown


def test_the_status_alone() -> None:
    canvas = Canvas(only_status=True)
    assert canvas.lines(console()) == []
    canvas.see(snapshot("a\nb"))
    (line,) = canvas.lines(console())
    assert "".join(segment.text for segment in line) == "canvas 1 · step 1 of 48 · 100 % settled"


def test_a_terminal_that_has_not_all_characters() -> None:
    seen = snapshot("<|channel>", "é中\n", "b", kinds=CONTROL + TEXT * 2, states=SETTLED + NOISE + SETTLED)
    assert texts(seen, encoding="latin-1") == ["<é?\\b", "canvas 1 . step 1 of 48 . 66 % settled"]


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.text(max_size=8), st.sampled_from("trcx"), st.sampled_from("nas")), max_size=40),
    st.integers(1, 20),
    st.integers(1, 12),
)
def test_whatever_it_is_it_fits(positions: list[tuple[str, str, str]], width: int, height: int) -> None:
    pieces, kinds, states = zip(*positions, strict=True) if positions else ((), (), ())
    shown = texts(snapshot(*pieces, kinds="".join(kinds), states="".join(states)), width=width, height=height)
    assert len(shown) <= height
    assert all(sum(map(cell_len, line)) <= width for line in shown)
    assert not OBEYED.intersection(unicodedata.category(character) for character in "".join(shown))
