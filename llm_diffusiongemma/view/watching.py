"""Who watches a reply of llm's: the terminal, and the replay that was asked for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, get_args

import llm
from llm.parts import StreamEvent

from ..options import Options
from ..switches import switch
from . import screen
from .canvas import Canvas
from .progress import Progress, indicate
from .records import Reading, Snapshot, Wants, Watch

if TYPE_CHECKING:
    from llm.models import _BaseConversation

    from ..backends.turn import Outcome, Turn
    from .replay.recorder import Recorder

#: Whether llm's commands show the canvas, if no option says so.
WATCH_VARIABLE = "LLM_DIFFUSIONGEMMA_WATCH"

T = TypeVar("T")
How = Literal["canvas", "status", "readings"]
"""What a terminal shows of a reply: its canvases; the status line alone; or only what is waited for if that takes
long."""


class Watcher(Protocol):
    """One of those who watch a reply."""

    wants: Wants

    def see(self, seen: Reading | Snapshot) -> object:
        """What is new of it: returns at once and raises nothing."""

    def close(self, error: BaseException | None) -> object:
        """The reply is over, or broken off by an error."""


class Watching:
    """One reply being watched. Enter it around all of the reply; leaving it leaves nothing on the terminal."""

    def __init__(
        self,
        prompt: llm.Prompt,
        options: Options,
        is_command: bool,
        conversation: _BaseConversation | None = None,
    ) -> None:
        """`is_command` says that the reply is for a command of llm's own, and not for a program.

        Raises `OptionError` if the environment says what can't be understood.
        """
        self._prompt, self._options, self._conversation = prompt, options, conversation
        self._is_command = is_command
        self._watchers: list[Watcher] = []
        self._terminal: Terminal | None = None
        if (how := _how(options.watch, is_command)) is not None:
            self._terminal = Terminal(how, hides_thoughts=bool(prompt.hide_reasoning), is_command=is_command)
            self._watchers.append(self._terminal)
        if is_command and not prompt.tool_results:
            screen.begin_line()
        self.recorder: Recorder | None = None
        """If a replay is asked for."""

    @property
    def watch(self) -> Watch | None:
        """For the reply's turn, once this has been entered."""
        if not self._watchers:
            return None
        return Watch(self.see, max((watcher.wants for watcher in self._watchers), key=get_args(Wants).index))

    def __enter__(self) -> Watching:
        """Raises `ReplayError` before anything is done for a reply whose replay could not be written."""
        if self._options.replay is not None:
            from .replay.recorder import Page, Recorder

            page = Page.shared(self._options.replay, self._conversation, self._is_command)
            self.recorder = Recorder(self._prompt.model.model_id, page)
            self._watchers.append(self.recorder)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        for watcher in self._watchers:
            watcher.close(error)

    def follow(self, turn: Turn, reply: Outcome) -> None:
        """What is answered, and what will be known of how it went."""
        if self.recorder is not None:
            self.recorder.follow(turn, reply)

    def see(self, seen: Reading | Snapshot) -> None:
        """What is new of the reply."""
        for watcher in self._watchers:
            watcher.see(seen)

    @contextmanager
    def printing(self, events: Sequence[StreamEvent]) -> Iterator[None]:
        """While who asked for the reply has the word, and may print these: nothing else is on the terminal."""
        if self.recorder is not None:
            self.recorder.say(events)
        with nullcontext() if self._terminal is None else self._terminal.making_way(events):
            yield


class Terminal:
    """Shows a reply below what is printed, until it is printed itself."""

    def __init__(self, how: How, *, hides_thoughts: bool, is_command: bool) -> None:
        self._is_command = is_command
        self.wants: Wants = "readings" if how == "readings" else "drafts"
        self._hides_thoughts = hides_thoughts
        self._canvas = Canvas(hides_thoughts=hides_thoughts, only_status=how == "status")
        # What is seen comes from one thread, and what is printed may from another.
        self._lock = threading.Lock()
        self._is_over = False
        self._shown: Progress | Canvas | None = None
        self._showing = ExitStack()

    def see(self, seen: Reading | Snapshot) -> None:
        with self._lock:
            if self._is_over:
                return
            if isinstance(seen, Snapshot):
                self._see_canvas(seen)
            else:
                self._see_reading(seen)

    @contextmanager
    def making_way(self, events: Sequence[StreamEvent]) -> Iterator[None]:
        """While these are printed, as llm's commands do."""
        with self._lock:
            self._clear()
        # The next canvas may be begun in another thread. A program may do anything here, and wait for that thread.
        with screen.aside() if self._is_command else nullcontext():
            self._count_on(events)
            yield
        with self._lock:
            if not self._is_over and self._shown is None:
                self._shown = self._show(indicate("Denoising the next canvas"))

    def _count_on(self, events: Sequence[StreamEvent]) -> None:
        """On what will have been printed."""
        global _is_behind_thought
        for event in events:
            if event.type == "text":
                if _is_behind_thought:
                    screen.printed("\n", err=True)
                screen.printed(event.chunk)
                _is_behind_thought = False
            elif event.type == "reasoning" and not self._hides_thoughts:
                screen.printed(event.chunk, err=True)
                _is_behind_thought = True

    def close(self, error: BaseException | None = None) -> None:
        with self._lock:
            self._is_over = True
            self._clear()

    def _see_canvas(self, snapshot: Snapshot) -> None:
        self._canvas.see(snapshot)
        if self._shown is not self._canvas:
            self._show(screen.shown(self._canvas, is_asked_for=True))
            self._shown = self._canvas
        screen.refresh()

    def _see_reading(self, reading: Reading) -> None:
        what = "Denoising the first canvas"
        if reading.tokens < reading.of:
            what = f"Reading the prompt: {reading.tokens:,} of {reading.of:,} tokens"
        if isinstance(self._shown, Progress):
            self._shown.describe(what)
        else:
            self._shown = self._show(indicate(what))

    def _show(self, shown: AbstractContextManager[T]) -> T:
        """In place of what is shown: if that ended first, this would wait for the terminal."""
        before, self._showing = self._showing, ExitStack()
        with before:
            return self._showing.enter_context(shown)

    def _clear(self) -> None:
        self._shown = None
        self._showing.close()


def _how(asked: bool | None, is_command: bool) -> How | None:
    """What the terminal shows; None if nothing.

    A program's terminal is its own, unless it asks. Raises `OptionError`.
    """
    if asked is None and is_command:
        asked = switch(WATCH_VARIABLE)
    if not (screen.can_show() if asked else is_command and screen.is_watched()):
        return None
    if asked is None:
        return "canvas" if sys.stdout is not None and sys.stdout.isatty() else "status"
    return "canvas" if asked else "readings"


_is_behind_thought = False
"""Whether a thought is the last that llm's command has printed: before a text it will end the line."""
