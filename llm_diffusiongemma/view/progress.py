"""What a terminal shows while something takes long: one line on stderr that goes when it is over.

Nothing is shown on a pipe, nor in a program of somebody else's, whose terminal it is: only where the process was
started as `llm`.

rich draws the line but doesn't keep it (its `Live` would hide the cursor, and whoever is killed can't bring it
back). Only the thread that draws touches it: whoever works counts bytes and goes on, even if the terminal is
stopped.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

# What takes less needs no explanation.
DELAY_SECONDS = 0.5
REFRESH_SECONDS = 0.1
BAR_CHARACTERS = 20
WIDEST_LINE = 1000


def on_terminal() -> bool:
    """Whether people read stderr. Whoever started the process may have closed it."""
    return sys.stderr is not None and sys.stderr.isatty()


class Progress:
    """What is being waited for, and how much of it there is. Threads may share one."""

    def __init__(self, what: str, total_bytes: int | None, num_bytes: int = 0) -> None:
        self._lock = threading.Lock()
        self._what = what
        self._total_bytes = total_bytes
        self._num_bytes = num_bytes

    def advance(self, num_bytes: int) -> None:
        """So many bytes more; fewer than 0 if some have to come again."""
        with self._lock:
            self._num_bytes += num_bytes

    def describe(self, what: str) -> None:
        with self._lock:
            self._what = what

    def set_total(self, num_bytes: int) -> None:
        with self._lock:
            self._total_bytes = num_bytes

    def now(self) -> tuple[str, int, int | None]:
        """What it is, and bytes of how many."""
        with self._lock:
            return self._what, self._num_bytes, self._total_bytes


@contextmanager
def indicate(what: str, total_bytes: int | None = None, num_bytes: int = 0) -> Iterator[Progress]:
    """Have a terminal show what takes long in here, from half a second on: with a total how many bytes are there,
    how fast they come and how long it will take. `num_bytes` of them were there before.

    Of several inside each other the innermost is shown. What is quoted from outside is for the caller to check.
    """
    progress = Progress(what, total_bytes, num_bytes)
    if not _has_watcher():
        yield progress
        return
    try:
        _line.begin(progress)
        yield progress
    finally:
        _line.end(progress)


@contextmanager
def aside() -> Iterator[None]:
    """While something else is written to the terminal, the line is out of its way, and comes again below it."""
    with _line.lock:
        _line.erase()
        yield


def report_to(report: Callable[[str, int, int | None], object]) -> None:
    """From now on, show nobody here what takes long, but say now and then what it is, and bytes of how many: in a
    process that somebody watches from another one."""
    global _line
    _line = _ReportedLine(report)


def dismiss() -> None:
    """Show nothing any more, whatever is still going on: the process is about to end.

    Who draws is not waited for long: it may want a module in whose import the process was interrupted.
    """
    if _line.lock.acquire(timeout=REFRESH_SECONDS):
        _line.close()
        _line.lock.release()


def _has_watcher() -> bool:
    if isinstance(_line, _ReportedLine):
        return True
    cli = getattr(sys.modules.get("llm.cli"), "cli", None)
    if cli is None or getattr(sys.modules.get("__main__"), "cli", None) is not cli:
        return False
    # Python has none where it runs without a console.
    return on_terminal() and os.environ.get("TERM", "").lower() != "dumb"


class _Line:
    """The line, and the waits that share it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Whoever has it has the terminal."""
        self._waits: list[Progress] = []
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self._console: Console | None = None
        """There while something is on the terminal."""

    def begin(self, progress: Progress) -> None:
        with self.lock:
            self._waits.append(progress)
            if len(self._waits) > 1:
                return
            self._is_over = threading.Event()
            thread = threading.Thread(target=self._draw, args=(self._is_over,), name="progress", daemon=True)
            self._thread = thread
        thread.start()

    def end(self, progress: Progress) -> None:
        thread = None
        with self.lock:
            # An interrupt may have come before it had begun.
            self._waits = [wait for wait in self._waits if wait is not progress]
            if not self._waits:
                self.close()
                thread, self._thread = self._thread, None
        if thread is not None and thread.ident is not None:
            thread.join()  # it may be importing rich, and an ending interpreter should not meet it there

    def close(self) -> None:
        with self.lock:
            self._is_over.set()
            self.erase()

    def erase(self) -> None:
        if self._console is not None:
            from rich.control import Control
            from rich.segment import ControlType

            with suppress(OSError, ValueError):  # the terminal is gone
                self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
            self._console = None

    def _draw(self, is_over: threading.Event) -> None:
        if is_over.wait(DELAY_SECONDS):
            return
        # A thread may import beside the main one: they share no modules that import each other in a circle.
        from rich.console import Console

        console = Console(stderr=True)
        bars: dict[tuple[Progress, bool], Bar] = {}
        while True:
            with self.lock:
                if is_over.is_set():
                    return
                progress = self._waits[-1]
                key = (progress, progress.now()[2] is not None)
                bars[key] = bars.get(key) or _bar(progress, console)
                try:
                    self._show(progress, bars[key], console)
                except (OSError, ValueError):  # the terminal is gone
                    return
            if is_over.wait(REFRESH_SECONDS):
                return

    def _show(self, progress: Progress, bar: Bar, console: Console) -> None:
        from rich.control import Control
        from rich.segment import ControlType, Segments

        what, num_bytes, total_bytes = progress.now()
        bar.update(bar.task_ids[0], completed=num_bytes, total=total_bytes)
        _describe(bar, what, console)
        # A line of the terminal and no more: what has run over its end could not be taken back.
        rendered = console.render_lines(bar.get_renderable(), console.options, pad=False)
        if not rendered:  # a terminal of no columns, as COLUMNS may have it
            return
        self._console = console
        with console:  # written at once
            console.control(Control(ControlType.CARRIAGE_RETURN))
            console.print(Segments(rendered[0]), end="")
            console.control(Control((ControlType.ERASE_IN_LINE, 0)))


class _ReportedLine(_Line):
    """One that somebody else draws."""

    def __init__(self, report: Callable[[str, int, int | None], object]) -> None:
        super().__init__()
        self._report = report

    def _draw(self, is_over: threading.Event) -> None:
        while not is_over.wait(DELAY_SECONDS):
            with self.lock:
                if is_over.is_set():
                    return
                now = self._waits[-1].now()
            self._report(*now)


def _bar(progress: Progress, console: Console) -> Bar:
    from rich import progress as parts
    from rich.table import Column

    what, num_bytes, total_bytes = progress.now()
    spinner = parts.SpinnerColumn("dots" if console.encoding.startswith("utf") else "line")
    text = parts.TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
    columns: list[parts.ProgressColumn] = [spinner, text]
    if total_bytes is not None:
        columns += [
            parts.BarColumn(BAR_CHARACTERS),
            parts.DownloadColumn(table_column=Column(no_wrap=True)),
            parts.TransferSpeedColumn(table_column=Column(no_wrap=True)),
            parts.TimeRemainingColumn(table_column=Column(no_wrap=True)),
        ]
    bar = parts.Progress(*columns, console=console, auto_refresh=False)
    bar.add_task(what, total=total_bytes, completed=num_bytes)
    return bar


def _describe(bar: Bar, what: str, console: Console) -> None:
    """Where the line is too short the bar goes, then the end of what it is. The numbers stay."""
    from rich.progress import BarColumn
    from rich.text import Text

    (task_id,) = bar.task_ids
    bar.update(task_id, description="")
    text, room = Text(what), console.width - _width(bar, console)
    if text.cell_len > room:
        bar.columns = tuple(column for column in bar.columns if not isinstance(column, BarColumn))
        room = console.width - _width(bar, console)
    text.truncate(max(1, room), overflow="ellipsis")
    bar.update(task_id, description=text.plain)


def _width(bar: Bar, console: Console) -> int:
    """Of its line, were the terminal as wide."""
    return console.measure(bar.get_renderable(), options=console.options.update(width=WIDEST_LINE)).maximum


_line = _Line()
