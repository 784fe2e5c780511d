"""Ctrl-C while a reply is made, and how the `llm` command ends that it was made for."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click
from click.globals import pop_context

from .backends.turn import Stop

#: What shells call a command that was ended by SIGINT.
INTERRUPTED_STATUS = 130
FAILED_STATUS = 1

_META_KEY = __name__


class Command:
    """The command of `llm` itself that wants a reply."""

    def __init__(self, context: click.Context) -> None:
        self._context = context
        self._status = 0
        context.call_on_close(self._end)

    @property
    def goes_on(self) -> bool:
        """Whether more prompts come, whatever happens to this one."""
        return self._context.info_name == "chat"

    def end_with(self, status: int) -> None:
        """Have the command end with a status, after it has printed and logged what there is."""
        self._status = self._status or status

    def _end(self) -> None:
        raised = sys.exc_info()[1]
        if self.goes_on or not (raised is None or isinstance(raised, KeyboardInterrupt)):
            return  # other errors have a message and a status of their own
        if isinstance(raised, KeyboardInterrupt):
            # While llm printed, logged or ran a tool, or under asyncio, which cancels first.
            click.echo("\nInterrupted.", err=True)
            self._status = INTERRUPTED_STATUS
        if self._status:
            # What is raised here keeps click from doing it.
            pop_context()
            raise SystemExit(self._status)


def current_command() -> Command | None:
    """None where a program uses llm from Python, though it may be a click command of its own."""
    context = click.get_current_context(silent=True)
    cli = getattr(sys.modules.get("llm.cli"), "cli", None)
    if context is None or cli is None or context.find_root().command is not cli:
        return None
    command = context.meta.get(_META_KEY)
    if not isinstance(command, Command):
        command = context.meta[_META_KEY] = Command(context)
    return command


class Interrupts(Stop):
    """A Ctrl-C raises `KeyboardInterrupt`, as ever, and stays known if that gets lost.

    Python drops what is raised in a destructor or in a callback of C code, and there are libraries that catch
    everything. So whoever works asks `is_set` between two steps.

    **Invariant**: the handler that was there is there again when this is left, and is never replaced but
    for Python's own, in the main thread.
    """

    def __init__(self, command: Command | None) -> None:
        self._command = command
        self.owns_process = command is not None
        self._count = 0
        self._is_held_back = False
        self._is_installed = False

    def __enter__(self) -> Interrupts:
        self._install()
        return self

    def __exit__(self, *_: object) -> None:
        self._uninstall()

    def is_set(self) -> bool:
        return self._count > 0

    def check(self) -> None:
        """Raises `KeyboardInterrupt` if there was one."""
        if self.is_set():
            raise KeyboardInterrupt

    @contextmanager
    def importing(self) -> Iterator[None]:
        # torch and numpy can't be imported again if their import was cut in the middle, so where the process
        # goes on it takes effect behind the imports.
        ends = self._command is not None and not self._command.goes_on
        with self._held_back(not ends):
            yield
        self.check()

    @contextmanager
    def printing(self) -> Iterator[None]:
        """While who asked for the reply has the word.

        llm's commands print, and one that is interrupted there would lose the turn: it is stopped behind that.
        A program may do anything: its Ctrl-C is its own.
        """
        if self._command is None:
            self._uninstall()
            try:
                yield
            finally:
                self._install()
        else:
            with self._held_back(True):
                yield

    @contextmanager
    def _held_back(self, is_held_back: bool) -> Iterator[None]:
        """The first Ctrl-C waits, to be asked for; who presses again doesn't want to wait."""
        before, self._is_held_back = self._is_held_back, is_held_back
        try:
            yield
        finally:
            self._is_held_back = before

    def _install(self) -> None:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._handle)
            self._is_installed = True

    def _uninstall(self) -> None:
        if self._is_installed and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._is_installed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 1 or not self._is_held_back:
            raise KeyboardInterrupt
