"""What a terminal shows below its cursor, on stderr, until that is over.

The cursor stays at the end of what has been printed. A frame lies on the rows below it, from the cursor's own row
where nothing stands on that, and is taken away by clearing the screen from the cursor on. So nothing has to be
known of the terminal but whether the cursor may stand at its edge (cursor.py): neither a resized window nor lines
that are broken anew make a difference, as long as the cursor's row is still to be seen. (tmux loses it where a
pane is made narrower while a high frame lies near the top of the screen: then the line may be broken there.)

The cursor is never hidden, there is no other screen, and rich's `Live` is not used: whoever is killed could bring
nothing back. Only one thread draws: whoever works changes what is to be shown and goes on, even if the terminal is
stopped. Nothing is shown on a pipe; and in a program of somebody else's, whose terminal it is, nothing but what it
asks for.
"""

from __future__ import annotations

import math
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol, TextIO

from .cursor import Cursor

if TYPE_CHECKING:
    from rich.console import Console, ConsoleDimensions
    from rich.segment import Segment

FRAME_SECONDS = 0.08
"""from one frame to the next"""
UNKNOWN_COLUMNS = 80
# How long an interrupted command waits for a terminal that takes nothing any more.
INTERRUPTED_SECONDS = 1.0

# What every terminal has, down to the Linux console and screen.
INDEX = "\x1bD"
"""One row down in the same column; at the bottom the screen scrolls."""
UP, DOWN = "\x1b[{}A", "\x1b[B"
SAVE_CURSOR, RESTORE_CURSOR = "\x1b7", "\x1b8"
ERASE_LINE, ERASE_SCREEN = "\x1b[K", "\x1b[J"
"""from the cursor on"""
# In the first corner of the screen tmux takes the latter for clearing all, of which it keeps a copy.
ERASE_FROM_OWN_ROW = ERASE_LINE + SAVE_CURSOR + DOWN + ERASE_SCREEN + RESTORE_CURSOR
WRAP, NO_WRAP = "\x1b[?7h", "\x1b[?7l"

_OBEYED = re.compile("[\0-\x1f\x7f-\x9f]")


class Showable(Protocol):
    """Something that can lie below the cursor."""

    def lines(self, console: Console) -> Sequence[Sequence[Segment]]:
        """What it looks like now: at most `console.height` lines of `console.width` columns, without line ends.
        None if there is nothing to show. Asked in the drawing thread. What has no room is cut off."""


def on_terminal() -> bool:
    """Whether people read stderr. Whoever started the process may have closed it."""
    return sys.stderr is not None and sys.stderr.isatty()


def can_show() -> bool:
    """Whether there is a terminal to show something on."""
    return on_terminal() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def is_watched() -> bool:
    """Whether there is one, and it is ours."""
    cli = getattr(sys.modules.get("llm.cli"), "cli", None)
    return cli is not None and getattr(sys.modules.get("__main__"), "cli", None) is cli and can_show()


def may_draw() -> bool:
    """Whether nobody else has the terminal now: a shell whose job in the background this is, or a program that
    reads key by key, as an editor does, and `less` behind a pipe of ours."""
    try:
        import termios
    except ImportError:  # Windows
        return True
    try:
        terminal = sys.stderr.fileno()
        is_by_lines = bool(termios.tcgetattr(terminal)[3] & termios.ICANON)
    except (OSError, ValueError, termios.error):  # the terminal is gone
        return False
    try:
        return is_by_lines and os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # another one than we were started from: nobody has jobs there
        return is_by_lines


@contextmanager
def shown(
    what: Showable, delay: float = 0.0, every: float = FRAME_SECONDS, *, is_asked_for: bool = False
) -> Iterator[None]:
    """Have a terminal show something while this lasts. Leaving it leaves nothing on the terminal.

    A program's terminal shows only what the program has asked for.

    Of several inside each other the innermost is shown of those that have lines. Nothing is asked for its lines
    before `delay` seconds have passed; then it is after `every` seconds again, and sooner after a `refresh`.
    """
    if not (can_show() if is_asked_for else is_watched()):
        yield
        return
    entry = _Entry(what, time.monotonic() + delay, every)
    try:
        _screen.begin(entry)
        yield
    except BaseException:
        _screen.end(entry, INTERRUPTED_SECONDS)
        raise
    else:
        _screen.end(entry)


def refresh() -> None:
    """Something that is shown has changed. Returns at once, whatever the terminal does."""
    _screen.is_stale = True


@contextmanager
def aside() -> Iterator[None]:
    """While something else is written to the terminal, all is out of its way; it comes again below that.

    Who writes says what by `printed`.
    """
    with _screen.lock:
        _screen.erase()
        yield


@contextmanager
def given_away() -> Iterator[None]:
    """While a shell has the terminal. For a signal's handler: it may have come while this thread was writing, and
    who draws is not waited for long."""
    if not _screen.lock.acquire(timeout=INTERRUPTED_SECONDS):
        yield
        return
    try:
        with suppress(RuntimeError):
            _screen.erase()
        yield
        _screen.cursor.begin_line()
    finally:
        _screen.lock.release()


def begin_line() -> None:
    """The cursor is at the start of a line: a new command, or what was typed has been ended by Enter."""
    with _screen.lock:
        _screen.cursor.begin_line()


def printed(text: str, err: bool = False) -> None:
    """What has been, or will be, written in this `aside`, to stdout or to stderr."""
    if not text or not can_show():
        return
    stream = sys.stderr if err else sys.stdout
    with _screen.lock:
        if stream is not None and stream.isatty():
            with suppress(OSError, ValueError):  # the terminal is gone
                size = _size()
                _screen.cursor.printed(text, size.columns)
                if not size.rows:
                    _screen.cursor.lose()
        elif _comes_back(stream):
            _screen.cursor.lose()


def dismiss() -> None:
    """Show nothing any more, whatever is still going on: the process is about to end.

    Who draws is not waited for long: it may want a module in whose import the process was interrupted.
    """
    _screen.close(FRAME_SECONDS)


class _Entry:
    """Something to be shown. Times are those of `time.monotonic`."""

    def __init__(self, what: Showable, start: float, every: float) -> None:
        self.what = what
        self.start = start
        self.every = every
        self.due = start
        """when it is asked for its lines next"""
        self.lines: Sequence[Sequence[Segment]] = ()


class _Screen:
    """What lies below the cursor, and who wants something there."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Whoever has it has the terminal."""
        self.cursor = Cursor()
        self.is_stale = False
        self._entries: list[_Entry] = []
        self._entries_lock = threading.Lock()
        """Nobody waits for the terminal while having it."""
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self._size: Size | None = None
        self._frame: _Frame | None = None
        """what lies below the cursor"""

    def begin(self, entry: _Entry) -> None:
        with self._entries_lock:
            self._entries.append(entry)
            if len(self._entries) > 1:
                return
            self._is_over = threading.Event()
            thread = threading.Thread(target=self._draw, args=(self._is_over,), name="screen", daemon=True)
            self._thread = thread
        with suppress(RuntimeError):  # there are too many threads, or the interpreter is ending
            thread.start()

    def end(self, entry: _Entry, patience_seconds: float = -1) -> None:
        """The last one to end waits for the terminal, and for who draws, to leave it clean."""
        thread = None
        with self._entries_lock:
            # An interrupt may have come before it had begun.
            self._entries = [other for other in self._entries if other is not entry]
            if not self._entries:
                self._is_over.set()
                thread, self._thread = self._thread, None
        self.is_stale = True
        if thread is not None and self._clear(patience_seconds) and thread.ident is not None:
            thread.join()  # it may be importing rich, and an ending interpreter should not meet it there

    def close(self, patience_seconds: float) -> None:
        """Draw nothing more, and erase what was there if the terminal can be had."""
        self._is_over.set()
        self._clear(patience_seconds)

    def _clear(self, patience_seconds: float) -> bool:
        """Erase what there is. Whether the terminal could be had; patience has no end below 0."""
        if not self.lock.acquire(timeout=patience_seconds):
            return False
        try:
            self.erase()
        finally:
            self.lock.release()
        return True

    def erase(self) -> None:
        """To be called with the lock."""
        if self._frame and may_draw():
            with suppress(OSError, ValueError):  # the terminal is gone
                _write(WRAP + self._frame.erasing)
        self._frame = None

    def _draw(self, is_over: threading.Event) -> None:
        console: Console | None = None
        while not is_over.wait(FRAME_SECONDS):
            if console is None:
                with self._entries_lock:
                    starts = [entry.start for entry in self._entries]
                if time.monotonic() < min(starts, default=math.inf):
                    continue
                # It may import beside the main thread: they share no modules that import each other in a circle.
                from rich.console import Console

                console = Console(stderr=True)
                if console.legacy_windows:
                    return
            with self.lock:
                if is_over.is_set():
                    return
                try:
                    self._show(console)
                except Exception:  # the terminal is gone; or what can't be shown, which is no matter for a reply
                    return

    def _show(self, console: Console) -> None:
        if not may_draw():
            return
        size = _size()
        columns = self.cursor.columns(size.columns)
        if not columns or size.columns in columns:  # moving the cursor would lose a wrap to come
            self.erase()
            return
        is_own_row = columns == {0}
        console.size = room = size.room(is_own_row)
        is_resized, self._size = size != self._size, size
        lines, is_new = self._lines(console, is_anew=is_resized or not self._frame)
        if not is_new:
            return
        if not lines or not room.height:
            self.erase()
            return
        before, frame = self._frame, _Frame(_written(lines[: room.height], console), is_own_row)
        if frame != before or is_resized:
            self._frame = frame
            has_remains = before is not None and (is_resized or len(before.lines) > len(frame.lines))
            _write((frame.erasing if has_remains else "") + frame.drawing)

    def _lines(self, console: Console, is_anew: bool) -> tuple[Sequence[Sequence[Segment]], bool]:
        """Those of the innermost that has some, and whether they may be others than before."""
        is_anew, self.is_stale = is_anew or self.is_stale, False
        now = time.monotonic()
        with self._entries_lock:
            entries = [entry for entry in self._entries if entry.start <= now]
        for entry in reversed(entries):
            if is_anew or entry.due <= now:
                entry.lines, entry.due = entry.what.lines(console), now + entry.every
                is_anew = True
            if entry.lines:
                return entry.lines, is_anew
        return (), is_anew


class Size(NamedTuple):
    """Of a terminal; no rows where it doesn't say."""

    columns: int
    rows: int

    def room(self, is_own_row: bool) -> ConsoleDimensions:
        """For what lies below the cursor. Of a terminal that is made half as wide, and breaks its lines anew, the
        cursor's row is still to be seen."""
        from rich.console import ConsoleDimensions

        return ConsoleDimensions(self.columns, max(int(is_own_row), (self.rows - 1) // 2))


def _size() -> Size:
    columns, rows = os.get_terminal_size(sys.stderr.fileno())
    return Size(columns, rows) if columns and rows else Size(UNKNOWN_COLUMNS, 0)


class _Frame(NamedTuple):
    """Lines as a terminal gets them."""

    lines: Sequence[str]
    is_own_row: bool
    """Whether the first is on the cursor's own row, in whose first column that is, and not below it."""

    @property
    def drawing(self) -> str:
        """What puts them below the cursor, in place of a frame that was not longer."""
        num_rows = len(self.lines) - self.is_own_row
        # Without these rows at the bottom of the screen there would be nothing to come back to.
        parts = [INDEX * num_rows, UP.format(num_rows)] if num_rows else []
        parts += [SAVE_CURSOR, NO_WRAP]
        for index, line in enumerate(self.lines):
            if index or not self.is_own_row:
                parts += [DOWN, "\r"]
            # Before the line, which may end in the last column.
            parts += [ERASE_LINE, line]
        return "".join([*parts, WRAP, RESTORE_CURSOR])

    @property
    def erasing(self) -> str:
        return ERASE_FROM_OWN_ROW if self.is_own_row else ERASE_SCREEN


def _written(lines: Sequence[Sequence[Segment]], console: Console) -> list[str]:
    """Lines as the terminal gets them, with nothing in them that it might obey but for styles."""
    from rich.segment import Segment, Segments

    segments: list[Segment] = []
    for line in lines:
        printable = [Segment(_OBEYED.sub("\N{REPLACEMENT CHARACTER}", text), style) for text, style, _ in line]
        segments += [*Segment.adjust_line_length(printable, console.width, pad=False), Segment.line()]
    # At once: rich takes as long to begin as for several lines.
    with console.capture() as capture:
        console.print(Segments(segments), end="", crop=False)
    return capture.get().split("\n")[:-1]


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _comes_back(stream: TextIO | None) -> bool:
    """Whether it is a pipe: at its other end somebody may write to the same terminal, soon or late."""
    try:
        mode = os.fstat(stream.fileno()).st_mode if stream is not None else 0
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


_screen = _Screen()


def _begin_anew() -> None:
    """In a forked process: who drew is not here, and may have held the terminal."""
    global _screen
    _screen = _Screen()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
