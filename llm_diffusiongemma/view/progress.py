"""What a terminal shows while something takes long: one line on stderr that goes when it is over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import screen

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.segment import Segment

# What takes less needs no explanation.
DELAY_SECONDS = 0.5
BAR_CHARACTERS = 20
WIDEST_LINE = 1000


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
    with _reporter.shown(progress) if _reporter is not None else screen.shown(_Line(progress), DELAY_SECONDS):
        yield progress


def report_to(report: Callable[[str, int, int | None], object]) -> None:
    """From now on, show nobody here what takes long, but say now and then what it is, and bytes of how many: in a
    process that somebody watches from another one."""
    global _reporter
    _reporter = _Reporter(report)


class _Line:
    """How a terminal shows a wait."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[bool, Bar] = {}
        """with a total, and without"""

    def lines(self, console: Console) -> list[list[Segment]]:
        what, num_bytes, total_bytes = self._progress.now()
        has_total = total_bytes is not None
        if has_total not in self._bars:
            self._bars[has_total] = _bar(self._progress, console)
        bar = self._bars[has_total]
        bar.update(bar.task_ids[0], completed=num_bytes, total=total_bytes)
        _describe(bar, what, console)
        return console.render_lines(bar.get_renderable(), console.options, pad=False)[:1]


class _Reporter:
    """Says now and then what is being waited for, to somebody in another process."""

    def __init__(self, report: Callable[[str, int, int | None], object]) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._waits: list[Progress] = []

    @contextmanager
    def shown(self, progress: Progress) -> Iterator[None]:
        is_over = threading.Event()
        thread = threading.Thread(target=self._tell, args=(progress, is_over), name="progress", daemon=True)
        with self._lock:
            self._waits.append(progress)
        thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._waits.remove(progress)
            is_over.set()
            thread.join()

    def _tell(self, progress: Progress, is_over: threading.Event) -> None:
        while not is_over.wait(DELAY_SECONDS):
            with self._lock:
                is_innermost = self._waits[-1:] == [progress]
            if is_innermost:
                self._report(*progress.now())


_reporter: _Reporter | None = None


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
