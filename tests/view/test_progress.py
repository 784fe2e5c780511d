"""The one indicator, on a terminal that the test holds the other end of."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import llm.cli
import pytest

from llm_diffusiongemma.interrupts import _say_last
from llm_diffusiongemma.view import progress, screen
from llm_diffusiongemma.view.progress import indicate
from llm_diffusiongemma.wording import tell

from ..terminals import PATIENCE_SECONDS, Terminal

if sys.platform == "win32":
    pytest.skip("no pseudo-terminals", allow_module_level=True)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """That of a process that was started as `llm`, where any wait is long enough.

    A test makes it standard error itself: pytest puts its own there when a test begins.
    """
    terminal = Terminal()
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.modules["__main__"], "cli", llm.cli.cli, raising=False)
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0)
    screen.begin_line()
    yield terminal
    terminal.close()


def test_bytes_of_how_many_and_then_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    terminal.stream.write("before\n")
    with indicate("Loading", 4_000_000_000) as waiting:
        waiting.advance(1_500_000_000)
        terminal.wait_for("1.5/4.0 GB")
        waiting.advance(-500_000_000)
        waiting.describe("Loading it again")
        terminal.wait_for("Loading it again")
        terminal.wait_for("1.0/4.0 GB")
    assert terminal.settle() == "before\n"
    # Whoever is killed here can bring back no cursor.
    assert "\x1b[?25l" not in terminal.written


def test_a_total_that_is_known_later(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with indicate("Looking [bold]for[/bold] it") as waiting:
        terminal.wait_for("Looking [bold]for[/bold] it")
        assert "GB" not in terminal.screen
        waiting.set_total(2_000_000_000)
        terminal.wait_for("0.0/2.0 GB")
    assert terminal.settle() == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_by_what_fails(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)

    def fail() -> None:
        with indicate("Importing torch"):
            terminal.wait_for("Importing torch")
            raise error

    with pytest.raises(error):
        fail()
    assert terminal.settle() == ""
    assert "screen" not in {thread.name for thread in threading.enumerate()}


def test_of_waits_in_each_other_the_inner_one(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with indicate("outer"):
        terminal.wait_for("outer")
        with indicate("inner"):
            terminal.wait_for("inner")
            assert "outer" not in terminal.screen
        terminal.wait_for("outer")
        assert "inner" not in terminal.screen
    assert terminal.settle() == ""


def test_what_is_told_stands_above(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with indicate("Downloading"):
        terminal.wait_for("Downloading")
        tell("A file is slow.")
        tell("It comes.")
        terminal.wait_for("It comes.\n⠋ Downloading")
        assert terminal.screen.startswith("A file is slow.\nIt comes.\n")
    assert terminal.settle() == "A file is slow.\nIt comes.\n"


def test_a_narrow_terminal_has_one_line_all_the_same(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    terminal.resize(30)
    with indicate("Downloading a file with quite a long name", 10**9):
        terminal.wait_for("Down")
        assert len(terminal.screen) <= 30
        assert "\n" not in terminal.screen


@pytest.mark.parametrize("columns", [70, 40])
def test_what_it_is_gives_way_to_the_numbers(
    columns: int, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    terminal.resize(columns)
    with indicate("Downloading a file with quite a long name", 51_648_000_000, 10**10) as waiting:
        for total in (10, 11, 12):  # a speed has to be between two
            terminal.wait_for(f" {total}.0/51.6 GB ")
            waiting.advance(10**9)
        terminal.wait_for("/s ")
        screen = terminal.screen
    assert re.fullmatch(r". Down.*… 1[123]\.0/51\.6 GB +[\d.]+ .B/s [\d:]{7}", screen), screen
    assert len(screen) <= columns


def test_a_terminal_of_no_columns(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fits into it, and the thread that draws doesn't fail at that."""
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    terminal.resize(0, 0)
    with indicate("Loading it"):
        (drawing,) = (thread for thread in threading.enumerate() if thread.name == "screen")
        drawing.join(0.3)
        assert drawing.is_alive()
    assert not failures


def test_what_ends_soon_is_not_shown(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setattr(progress, "DELAY_SECONDS", PATIENCE_SECONDS)
    with indicate("Loading", 10), indicate("a part of it"):
        pass
    assert terminal.settle() == "" == terminal.written


def test_behind_the_last_words_nothing_comes(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an interrupted command, whose import in another thread goes on until the process is ended."""
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with indicate("Importing torch"):
        terminal.wait_for("Importing torch")
        _say_last()
        time.sleep(3 * screen.FRAME_SECONDS)
        assert terminal.settle() == "\nInterrupted.\n"


def test_the_last_words_come_whoever_draws(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for a module that was being imported as the interrupt came."""
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with screen.aside():
        saying = threading.Thread(target=_say_last)
        saying.start()
        terminal.wait_for("Interrupted.")
    saying.join()


@pytest.mark.parametrize("where", ["a pipe", "TERM=dumb", "a program", "no stderr"])
def test_where_nobody_watches_nothing_is_started(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    if where == "a pipe":
        monkeypatch.setattr(sys, "stderr", io.StringIO())
    elif where == "TERM=dumb":
        monkeypatch.setenv("TERM", "dumb")
    elif where == "no stderr":
        monkeypatch.setattr(sys, "stderr", None)
    else:
        monkeypatch.delattr(sys.modules["__main__"], "cli")
    with indicate("Loading", 10) as waiting:
        waiting.advance(5)
        assert "screen" not in {thread.name for thread in threading.enumerate()}
    assert terminal.settle() == "" == terminal.written


def test_a_terminal_that_is_gone_ends_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with indicate("Loading"):
        terminal.wait_for("Loading")
        terminal.stream.close()
        time.sleep(3 * screen.FRAME_SECONDS)
    assert not failures


def test_said_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    has_come = threading.Event()

    def report(*now: Any) -> None:
        if now == ("Downloading", 3, 10):
            has_come.set()

    monkeypatch.setattr(progress, "_reporter", None)  # to have it back
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.001)
    progress.report_to(report)
    with indicate("Loading"), indicate("Downloading", 10) as inner:
        inner.advance(3)
        assert has_come.wait(PATIENCE_SECONDS)
