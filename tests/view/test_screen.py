"""What lies below a terminal's cursor: on a real terminal, and as it is written."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import Mock

import llm.cli
import pytest
from rich.console import Console
from rich.segment import Segment

from llm_diffusiongemma.interrupts import Interrupts
from llm_diffusiongemma.view import screen
from llm_diffusiongemma.wording import tell

from .. import tmux as terminals
from ..terminals import PATIENCE_SECONDS, Terminal
from ..tmux import Drawing, Tmux

if sys.platform == "win32":
    pytest.skip("no pseudo-terminals", allow_module_level=True)

EDGE = range(78, 83)


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drawing]:
    if not terminals.is_there():
        pytest.skip(terminals.REASON)
    folder = tmp_path_factory.mktemp("tmux")
    tmux = Tmux(folder)
    drawing = Drawing(tmux, folder)
    yield drawing
    drawing.close()
    tmux.close()


def test_the_text_stays_as_it_is(drawing: Drawing) -> None:
    """At every column around the edge, and where the screen scrolls."""
    pieces = [piece for columns in EDGE for piece in ("a" * columns, "bc", "\n")]
    wide = [piece for columns in (38, 39, 40, 41) for piece in ("語" * columns, "b語", "\nd")]
    drawn = []
    drawing.do("clear")
    for piece in pieces + wide:
        drawing.do("print", piece)
        drawn.append(drawing.do("draw", 3))
    seen = drawing.printed()
    drawing.do("clear")
    drawing.do("print_alone", "".join(pieces + wide))
    assert seen == drawing.printed()
    # Only where the cursor may be at the edge.
    assert len(drawn) - sum(drawn) == 2
    assert drawing.tmux.flag("wrap_flag") == "1"


def test_resized_in_the_middle(drawing: Drawing) -> None:
    """tmux breaks lines anew. A pane that is made half as wide still has the cursor in it, at the bottom."""
    words = "".join(f"{number} " for number in range(400))
    drawing.do("clear")
    drawing.do("print", 30 * "\n")
    for index, size in enumerate([(40, 24), (97, 30), (50, 10), (160, 12), (80, 24)]):
        drawing.do("print", words[index * 200 : (index + 1) * 200])
        drawing.do("draw", 40)
        drawing.tmux.resize(*size)
        drawing.do("draw", 40)
    drawing.printed()
    seen = drawing.tmux.text("-J")
    text = seen.rpartition("<end")[0]
    assert text.strip() == words[:1000].strip()


def test_killed_with_something_shown(drawing: Drawing) -> None:
    assert drawing.do("draw", 3)
    os.kill(drawing.do("pid"), signal.SIGKILL)
    drawing.tmux.wait_for("<ended ")
    assert drawing.tmux.flag("cursor_flag") == drawing.tmux.flag("wrap_flag") == "1"


class Shown:
    """Lines of text, and how often they were asked for."""

    def __init__(self, *lines: str) -> None:
        self.texts = lines
        self.rooms: list[tuple[int, int]] = []

    def lines(self, console: Console) -> Sequence[Sequence[Segment]]:
        self.rooms.append((console.width, console.height))
        return [[Segment(text)] for text in self.texts]


@pytest.fixture
def own_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """That of a process that was started as `llm`: for `take`."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.modules["__main__"], "cli", llm.cli.cli, raising=False)
    monkeypatch.setattr(screen, "FRAME_SECONDS", 0.002)
    monkeypatch.setattr(screen, "_screen", screen._Screen())
    yield terminal
    terminal.close()


def take(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it standard output and error: pytest puts its own there when a test begins."""
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setattr(sys, "stdout", terminal.stream)


def say(text: str, **to: Any) -> None:
    with screen.aside():
        screen.printed(text, **to)
        sys.stderr.write(text)


def test_below_what_has_been_printed(own_terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    take(own_terminal, monkeypatch)
    shown = Shown("one", "two", "three")
    with screen.shown(shown):
        own_terminal.wait_for_screen("one\ntwo\nthree")
        say("Some text")
        own_terminal.wait_for_screen("Some text\none\ntwo\nthree")
        # What has become shorter leaves nothing, as has what has nothing to show.
        shown.texts = ("four",)
        own_terminal.wait_for_screen("Some text\nfour")
        shown.texts = ()
        own_terminal.wait_for_screen("Some text")
        shown.texts = ("five",)
        tell(" and this.")
        own_terminal.wait_for_screen("Some text and this.\nfive")
    assert own_terminal.settle() == "Some text and this.\n"


def test_the_same_again_is_not_written(own_terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    take(own_terminal, monkeypatch)
    shown = Shown("one")
    with screen.shown(shown, every=1000):
        own_terminal.wait_for("one")
        for number in range(2, 5):
            screen.refresh()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while len(shown.rooms) < number:
                assert time.monotonic() < deadline
                time.sleep(0.001)
    own_terminal.settle()
    assert own_terminal.written.count("one") == 1
    assert len(shown.rooms) == 4


def test_more_than_has_room(own_terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal of one row there is only the cursor's own; in a narrow one lines are cut."""
    take(own_terminal, monkeypatch)
    shown = Shown("first line", "second line", "third line")
    with screen.shown(shown):
        for columns, rows, first, below in (
            (80, 24, "first line\nsecond line\nthird line", "a\nfirst line\nsecond line\nthird line"),
            (80, 5, "first line\nsecond line", "a\nfirst line\nsecond line"),
            (5, 3, "first", "a\nfirst"),
            (5, 2, "first", "a"),
            (1, 1, "f", "a"),  # in which the cursor is at the edge then
        ):
            own_terminal.resize(columns, rows)
            say("\r")
            own_terminal.wait_for_screen(first)
            say("a")
            own_terminal.wait_for_screen(below)
    assert {(80, 11), (80, 2), (5, 1), (1, 1)} <= set(shown.rooms)


def test_nothing_in_it_is_obeyed(own_terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    take(own_terminal, monkeypatch)
    with screen.shown(Shown("a\x1b[2Jb\nc\x9b1Ad\te")):
        own_terminal.wait_for_screen("a\ufffd[2Jb\ufffdc\ufffd1Ad\ufffde")


@pytest.mark.parametrize("who", ["a pager", "a shell", "a text that a terminal obeys", "a pipe's reader"])
def test_in_nobodys_way(who: str, own_terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies there is taken away where that is sure to be right, and nothing comes in its place."""
    import termios

    take(own_terminal, monkeypatch)
    shown, text = Shown("one"), "text\n"
    read, write = os.pipe()
    with screen.shown(shown), os.fdopen(read), os.fdopen(write, "w") as pipe:
        own_terminal.wait_for_screen("one")
        # Somebody who reads key by key, and may be anywhere on the screen.
        if who == "a pager":
            settings = termios.tcgetattr(own_terminal.stream)
            settings[3] &= ~termios.ICANON
            termios.tcsetattr(own_terminal.stream, termios.TCSANOW, settings)
        elif who == "a shell":
            monkeypatch.setattr(os, "tcgetpgrp", lambda terminal: os.getpgrp() + 1)
        elif who == "a pipe's reader":
            monkeypatch.setattr(sys, "stdout", pipe)
        else:
            text = "\x1b[3Ctext\n"
        with screen.aside():
            screen.printed(text)
        asked = len(shown.rooms)
        shown.texts = ("two",)
        time.sleep(0.05)
        assert len(shown.rooms) == asked
    assert own_terminal.settle() == ("one" if who in ("a pager", "a shell") else "")


def test_a_shell_gets_it_clean(own_terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-Z. It has printed whole lines when the process goes on."""
    take(own_terminal, monkeypatch)
    seen = []

    def stop(number: int) -> None:
        assert signal.getsignal(number) is signal.SIG_DFL
        seen.append(own_terminal.settle())
        own_terminal.stream.write("\n[1]+  Stopped\n$ fg\nllm\n")

    monkeypatch.setattr(signal, "raise_signal", stop)
    interrupts = Interrupts(None)
    interrupts.owns_process = True
    with screen.shown(Shown("one", "two")), interrupts:
        say("Some text")
        own_terminal.wait_for_screen("Some text\none\ntwo")
        os.kill(os.getpid(), signal.SIGTSTP)
        own_terminal.wait_for_screen("Some text\n[1]+  Stopped\n$ fg\nllm\none\ntwo")
    assert seen == ["Some text"]
    assert signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL


def test_what_cannot_be_shown_is_no_matter(own_terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    take(own_terminal, monkeypatch)
    uncaught, what = Mock(), Mock()
    monkeypatch.setattr(threading, "excepthook", uncaught)
    what.lines.side_effect = KeyError
    with screen.shown(what):
        thread = screen._screen._thread
        assert thread is not None
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    uncaught.assert_not_called()


def test_without_a_thread_nothing_is_shown(own_terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    take(own_terminal, monkeypatch)
    monkeypatch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
    with screen.shown(Shown("one")):
        pass
    assert own_terminal.settle() == ""


def test_one_begins_as_the_last_one_ends(own_terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread, before that is said to who draws."""
    take(own_terminal, monkeypatch)
    drawing, first, second = screen._screen, Shown("one"), screen._Entry(Shown("two"), 0.0, 1000)

    class Lock:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *raised: object) -> None:
            if not drawing._entries:
                drawing.begin(second)

    monkeypatch.setattr(drawing, "_entries_lock", Lock())

    def show() -> None:
        with screen.shown(first):
            own_terminal.wait_for("one")

    ending = threading.Thread(target=show, daemon=True)
    ending.start()
    ending.join(PATIENCE_SECONDS)
    assert not ending.is_alive()
    own_terminal.wait_for("two")
    monkeypatch.setattr(drawing, "_entries_lock", threading.Lock())
    drawing.end(second)


def test_in_a_forked_process_nobody_has_the_terminal(
    own_terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(own_terminal, monkeypatch)
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with screen.aside():
            is_held.set()
            is_over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    if not (child := os.fork()):
        has_it = screen._screen.lock.acquire(timeout=1)
        os._exit(0 if has_it else 1)
    is_over.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0
