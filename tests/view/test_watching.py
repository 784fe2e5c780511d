"""A reply being watched on a terminal that the test holds the other end of."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import llm
import llm.cli
import pytest
from llm.parts import StreamEvent

from llm_diffusiongemma import interrupts
from llm_diffusiongemma.options import Options
from llm_diffusiongemma.view import progress, screen, watching
from llm_diffusiongemma.view.records import Reading, Snapshot
from llm_diffusiongemma.view.watching import WATCH_VARIABLE, Watching

from ..conftest import TINY, Llm
from ..terminals import PATIENCE_SECONDS, Terminal
from .test_canvas import snapshot

if sys.platform == "win32":
    pytest.skip("no pseudo-terminals", allow_module_level=True)

COUNT = ("-m", TINY, "Count from 1 to 40", "-o", "seed", "3")


class Command:
    """`llm` in this process, on a terminal."""

    def __init__(self, terminal: Terminal, patch: pytest.MonkeyPatch) -> None:
        self.terminal = terminal
        self.screens: list[str] = []
        """What could be seen after each denoising step; all of them have come to the terminal."""
        self._patch = patch
        see = Watching.see

        def see_and_wait(watching: Watching, seen: Reading | Snapshot) -> None:
            see(watching, seen)
            if isinstance(seen, Snapshot):
                terminal.wait_for(f"canvas {seen.block + 1} · step {seen.step} of 48")
                self.screens.append(terminal.screen)

        patch.setattr(Watching, "see", see_and_wait)
        patch.setattr(screen, "FRAME_SECONDS", 0.001)

    def __call__(self, *arguments: str, stdout: Any = None) -> str:
        """The screen in the end."""
        with open(os.devnull) as nothing, self._patch.context() as patch:
            patch.setattr(sys, "stdin", nothing)
            patch.setattr(sys, "stderr", self.terminal.stream)
            patch.setattr(sys, "stdout", stdout or self.terminal.stream)
            llm.cli.cli.main(list(arguments), standalone_mode=False)
        assert "screen" not in {thread.name for thread in threading.enumerate()}
        return self.terminal.settle()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """That of a process that was started as `llm`."""
    terminal = Terminal()
    terminal.resize(200)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.modules["__main__"], "cli", llm.cli.cli, raising=False)
    screen.begin_line()
    interrupted = signal.getsignal(signal.SIGINT)
    yield terminal
    # A command that owns its process leaves it to end by any further Ctrl-C.
    signal.signal(signal.SIGINT, interrupted)
    terminal.close()


@pytest.fixture
def command(terminal: Terminal, llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(terminal, monkeypatch)


def test_the_canvas_condenses_and_leaves_the_text(command: Command, llm_command: Llm) -> None:
    piped = llm_command(*COUNT).stdout
    assert command(*COUNT) == piped
    written = command.terminal.written
    # Noise, what is accepted, and what has settled.
    assert "\x1b[2m" in written
    assert "\x1b[1m1 2 3 4 5 " in written
    assert "\x1b[K1 2 3 4 5 " in written
    assert command.screens[0].endswith("\ncanvas 1 · step 1 of 48 · 0 % settled")
    assert len(command.screens) > 1
    # Whoever is killed here can bring back no cursor.
    assert "\x1b[?25l" not in written


def test_piped_only_how_far_it_is(command: Command, llm_command: Llm, tmp_path: Path) -> None:
    with open(tmp_path / "out.txt", "w+", encoding="utf-8") as out:
        assert command(*COUNT, stdout=out) == ""
        out.seek(0)
        assert out.read() == llm_command(*COUNT).stdout
    assert command.screens[0] == "canvas 1 · step 1 of 48 · 0 % settled"


@pytest.mark.parametrize("how", ["option", "environment", "dumb"])
def test_off_nothing_is_made(command: Command, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    watched: list[object] = []
    enter = Watching.__enter__

    def keep(self: Watching) -> Watching:
        watching = enter(self)
        watched.append(self.watch and self.watch.wants)
        return watching

    monkeypatch.setattr(Watching, "__enter__", keep)
    # Whatever takes long here, on a machine that is busy: it would be said.
    monkeypatch.setattr(progress, "DELAY_SECONDS", PATIENCE_SECONDS)
    if how == "environment":
        monkeypatch.setenv(WATCH_VARIABLE, "off")
    elif how == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    option = ("-o", "watch", "false") if how == "option" else ()
    assert command(*COUNT, *option).startswith("1 2 3 4 ")
    assert "\x1b" not in command.terminal.written
    assert watched == [None if how == "dumb" else "readings"]


def test_a_thought_that_is_hidden_is_not_seen(command: Command) -> None:
    prompt = ("-m", TINY, "What is 2 + 2?", "-o", "thinking", "true", "-o", "seed", "3")
    shown = command(*prompt)
    assert any("‹thought" in seen for seen in command.screens)
    thought, _, answer = shown.rstrip("\n").rpartition("\n")
    assert thought
    assert answer
    command.terminal._written = b""
    command.screens.clear()
    assert command(*prompt, "-R") == answer + "\n"
    assert all(seen.partition("›")[0].strip("‹·") == "" for seen in command.screens)


def test_async(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = []
    see = Watching.see

    def look(watching: Watching, seen: Reading | Snapshot) -> None:
        stops.append(signal.getsignal(signal.SIGTSTP))
        see(watching, seen)

    monkeypatch.setattr(Watching, "see", look)
    assert command(*COUNT, "--async").startswith("1 2 3 4 ")
    assert command.screens[0].endswith("canvas 1 · step 1 of 48 · 0 % settled")
    # Ctrl-Z gives the shell a clean terminal.
    assert {*stops} == {interrupts._give_way}
    assert signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL


def test_what_is_said_at_the_end_is_said_behind_it(command: Command) -> None:
    shown = command(*COUNT, "-o", "max_tokens", "20")
    assert shown.startswith("1 2 3 4 ")
    assert "canvas" not in shown
    assert "\nThe reply was cut: " in shown


@pytest.mark.parametrize("is_async", [False, True])
def test_a_program_that_asks_for_it(command: Command, monkeypatch: pytest.MonkeyPatch, is_async: bool) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "cli")
    monkeypatch.setattr(sys, "stderr", command.terminal.stream)

    def text(**options: Any) -> str:
        if not is_async:
            return llm.get_model(TINY).prompt("Count from 1 to 40", seed=3, **options).text()

        async def run() -> str:
            return await llm.get_async_model(TINY).prompt("Count from 1 to 40", seed=3, **options).text()

        return asyncio.run(run())

    expected = text()
    assert command.terminal.settle() == command.terminal.written == ""
    assert text(watch=True) == expected
    assert command.screens
    assert command.terminal.settle() == ""


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("asked", "environment", "stdout", "how"),
    [
        (None, "", "terminal", "canvas"),
        (None, "", "pipe", "status"),
        (None, " ON ", "pipe", "canvas"),
        (None, "0", "terminal", "readings"),
        (True, "off", "pipe", "canvas"),
        (False, "true", "terminal", "readings"),
        (False, "maybe", "terminal", "readings"),
    ],
)
def test_what_a_command_shows(
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    asked: bool | None,
    environment: str,
    stdout: str,
    how: str,
) -> None:
    monkeypatch.setenv(WATCH_VARIABLE, environment)
    monkeypatch.setattr(sys, "stdout", Tty() if stdout == "terminal" else io.StringIO())
    monkeypatch.setattr(sys, "stderr", Tty())
    assert watching._how(asked, is_command=True) == how
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert watching._how(asked, is_command=True) is None
    monkeypatch.setattr(sys, "stderr", None)
    assert watching._how(asked, is_command=True) is None


def test_a_program_shows_nothing_by_itself(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Tty())
    # Whatever the variable is: it is for llm's commands.
    monkeypatch.setenv(WATCH_VARIABLE, "maybe")
    assert watching._how(None, is_command=False) is None
    assert watching._how(False, is_command=False) is None
    monkeypatch.setenv("TERM", "dumb")
    assert watching._how(True, is_command=False) is None


def test_a_variable_that_is_not_understood(llm_command: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WATCH_VARIABLE, "may\x1bbe")
    assert llm_command.fails("-m", TINY, "hi") == (
        f"{WATCH_VARIABLE} is 'may\\x1bbe'. Set it to on or off, or unset it."
    )


def reply(tool_results: Sequence[llm.ToolResult] = (), **options: Any) -> Watching:
    """One that a command waits for."""
    prompt = llm.Prompt("hi", llm.get_model(TINY), tool_results=list(tool_results))
    return Watching(prompt, Options(**options), is_command=True, conversation=None)


@pytest.fixture
def stderr(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """To be called by the test: pytest puts its own there when a test begins."""

    def use() -> None:
        monkeypatch.setattr(sys, "stderr", terminal.stream)
        monkeypatch.setattr(sys, "stdout", terminal.stream)
        monkeypatch.setattr(progress, "DELAY_SECONDS", 0)

    return use


@pytest.mark.parametrize("watch", [True, False])
def test_a_long_prompt_being_read(
    terminal: Terminal, stderr: Callable[[], None], watch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr()
    # One wait, however often it gets further: it is shown after half a second.
    indicate = Mock(wraps=progress.indicate)
    monkeypatch.setattr(watching, "indicate", indicate)
    with reply(watch=watch) as watched:
        watched.see(Reading(1024, 60_000))
        terminal.wait_for("Reading the prompt: 1,024 of 60,000 tokens")
        watched.see(Reading(2048, 60_000))
        terminal.wait_for("Reading the prompt: 2,048 of 60,000 tokens")
        watched.see(Reading(60_000, 60_000))
        terminal.wait_for("Denoising the first canvas")
        indicate.assert_called_once()
        if watch:
            watched.see(snapshot("Yes", step=1))
            terminal.wait_for("Yes\ncanvas 1 ")
            assert "ing" not in terminal.settle()
        with watched.printing([StreamEvent("text", "Yes")]):
            terminal.stream.write("Yes")
        terminal.wait_for("Yes\n⠋ Denoising the next canvas")
    assert terminal.settle() == "Yes"


def test_nothing_comes_while_llm_prints_nor_after_the_end(terminal: Terminal, stderr: Callable[[], None]) -> None:
    stderr()
    with reply() as watched:
        watched.see(snapshot("Yes"))
        terminal.wait_for("Yes\ncanvas 1 ")
        with watched.printing([StreamEvent("text", "Yes")]):
            terminal.stream.write("Yes")
            # A worker may be at the next canvas by now.
            seeing = threading.Thread(target=watched.see, args=(snapshot(" and no", block=1),))
            seeing.start()
            seeing.join()
            time.sleep(3 * screen.FRAME_SECONDS)
            assert terminal.settle() == "Yes"
        terminal.wait_for("Yes\n and no\ncanvas 2 ")
        with watched.printing([StreamEvent("text", " and no")]):
            terminal.stream.write(" and no")
        terminal.wait_for("Yes and no\n⠋ Denoising the next canvas")
    watched.see(snapshot("late", block=2))
    assert "screen" not in {thread.name for thread in threading.enumerate()}
    assert terminal.settle() == "Yes and no"


def test_the_terminal_is_told_what_llm_prints(
    terminal: Terminal, stderr: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thoughts go to stderr, and before the text llm ends their line: in the next reply of a chain, too."""
    stderr()
    told: list[tuple[str, bool]] = []
    monkeypatch.setattr(screen, "printed", lambda text, err=False: told.append((text, err)))
    first = [StreamEvent("reasoning", "Hm"), StreamEvent("tool_call_name", "f", tool_call_id="tc_1")]
    with reply() as watched, watched.printing(first):
        assert told == [("Hm", True)]
    with reply() as watched, watched.printing([StreamEvent("text", "One")]):
        pass
    with reply() as watched, watched.printing([StreamEvent("text", "Two")]):
        pass
    assert told == [("Hm", True), ("\n", True), ("One", False), ("Two", False)]


def test_only_what_goes_on_in_a_chain_begins_in_the_middle_of_a_line(
    stderr: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[None] = []
    monkeypatch.setattr(screen, "begin_line", lambda: begun.append(None))
    reply([llm.ToolResult("f", output="1")])
    assert not begun
    reply()
    assert begun


def test_a_terminal_that_is_stopped_holds_up_no_reply(
    terminal: Terminal, stderr: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr()
    with reply() as watched:
        watched.see(snapshot("Yes"))
        terminal.wait_for("Yes\ncanvas 1 ")
        with screen.aside():  # somebody has the terminal
            seeing = threading.Thread(target=watched.see, args=(snapshot("No", step=2),))
            seeing.start()
            seeing.join(PATIENCE_SECONDS)
            assert not seeing.is_alive()
